"""A trained run to smaller and faster variants of it, each measured against the run on the same rows.

In: a run and a recipe (`tfpipeline.compress.recipes`: a chain of steps in a TOML file). Out: `RUN/compressed/<variant>/`, whole or not at all, with a report.
Reads in the order of the flow: `recipes` (the door), the transforms `trim`, `layers` and `structured` (each one trained model in, another out), `finetune`
(a training run like any other), `integer` (the conversions to int8, and what stays in float), `measure`, `chain` (the steps in order, and the budget),
`report` and `command`. How a model becomes a `.tflite` is the business of `tfpipeline.edge`. Importing this imports nothing heavy.
"""
