"""The mathematics in plain torch: the definition that every backend must agree with."""
