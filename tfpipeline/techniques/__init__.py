"""What makes a model smaller while it is trained, one file each: `pruning` (and `zeros`, which counts and keeps them),
`quantization`, `distillation`.

Each of them prepares a `Classifier` and gives `tfpipeline.train` an object that its `train_step` asks; none of them knows about runs, files or epochs.
Converting a trained model (`tfpipeline.edge`) and chaining such steps (`tfpipeline.compress`) are other rooms.
"""
