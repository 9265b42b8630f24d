"""The reference backend: numpy, op by op."""
