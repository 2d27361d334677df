"""The embedded server: what TensorFlow Serving's own clients cannot tell from the real one, for laptops, tests and small deployments."""
