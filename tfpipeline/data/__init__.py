"""Raw files to clean, split examples: frees every other room from formats, bad rows, duplicates and leakage.

In: `DataConfig`. Out: a `Corpus` of three `Examples` (columnar, memory-mapped), a report, and `rejects.jsonl`. Refuses rows it cannot use, with
`file:line`; sets them aside instead when asked; never drops one in silence. Does not change texts: cleaning is `tfpipeline.text`, in the graph.
"""

from tfpipeline.data.examples import Corpus, Example, Examples
from tfpipeline.data.prepare import open_prepared, prepare, read_examples
from tfpipeline.data.readers import expand
from tfpipeline.data.report import add_token_statistics, render

__all__ = ["Corpus", "Example", "Examples", "add_token_statistics", "expand", "open_prepared", "prepare", "read_examples", "render"]
