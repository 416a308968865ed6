"""Compare what this project computes and writes with what other people's code says.

    pip install -e '.[test,peers]' && pytest -m peers

Nothing here is copied from a peer: it is installed and called. A test whose peer is not installed
is skipped and names the package. Every file marks its tests with `peers`.
"""
