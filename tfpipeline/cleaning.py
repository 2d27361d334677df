"""What cleaning looks for, where the graph's regular expressions (RE2) and Python's mean the same: one table for both ways of cleaning a text.

`tfpipeline.text` cleans in the graph, `tfpipeline.edge.tokenizer` on a device without TensorFlow. Patterns that the two engines read differently stand there,
each in its own dialect.
"""

from __future__ import annotations

LONGEST_WORD_BYTES = 400  # a longer word is one [UNK]

# A few characters of a tag name must follow `<`, so that `a < b` and `<3` stay; the bound keeps one stray `<` from swallowing a text.
TAG = r"<(?:/?[A-Za-z][^<>]{0,500}|!--[^<>]{0,500}--)>"
EMAIL = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"
# The entities seen in real feedback, `&amp;` last so that `&amp;lt;` is decoded once, not twice. Numeric entities outside this table become a space.
ENTITIES = (
    ("&(?:lt|#60|#x3[Cc]);", "<"),
    ("&(?:gt|#62|#x3[Ee]);", ">"),
    ("&(?:quot|ldquo|rdquo|bdquo|#34|#x22|#8220|#8221);", '"'),
    ("&(?:apos|lsquo|rsquo|#0?39|#x27|#8216|#8217);", "'"),
    ("&(?:nbsp|ensp|emsp|thinsp|#160|#xA0);", " "),
    ("&(?:ndash|mdash|#8211|#8212);", "-"),
    ("&(?:hellip|#8230);", "..."),
    ("&(?:euro|#8364);", "€"),
    ("&(?:pound|#163);", "£"),
    ("&(?:yen|#165);", "¥"),
    ("&(?:cent|#162);", "¢"),
    ("&(?:[aA]grave|[aA]acute|[aA]circ|[aA]tilde|[aA]uml|[aA]ring);", "a"),
    ("&(?:[eE]grave|[eE]acute|[eE]circ|[eE]uml);", "e"),
    ("&(?:[iI]grave|[iI]acute|[iI]circ|[iI]uml);", "i"),
    ("&(?:[oO]grave|[oO]acute|[oO]circ|[oO]tilde|[oO]uml|[oO]slash);", "o"),
    ("&(?:[uU]grave|[uU]acute|[uU]circ|[uU]uml);", "u"),
    ("&[cC]cedil;", "c"),
    ("&[nN]tilde;", "n"),
    ("&szlig;", "ß"),
    (r"&#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});", " "),
    ("&amp;|&#38;|&#x26;", "&"),
)
