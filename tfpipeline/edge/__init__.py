"""A trained model as a `.tflite`, and that file answering from raw text on LiteRT without TensorFlow.

In: a `Trained`. Out: one file with labels, vocabulary and settings inside (`convert`, the only module here that imports TensorFlow, with `graph` and
`calibration`); then its answers (`runner`), its counts (`inspect`), its proof (`verify`) and the command (`command`), for which LiteRT and numpy are
enough.
"""
