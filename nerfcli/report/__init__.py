"""Pages in one file: a run's scores with their pictures, and two runs side by side."""
