"""A published model and everything after it. Never imports `tfpipeline`; nothing here imports TensorFlow."""
