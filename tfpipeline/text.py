"""Strings to token ids, in the graph: frees every caller from tokenizers, cleaning and padding, and training from skew against serving.

In: strings `[batch]`, and a second column of strings for pairs. Out: `input_ids`, `attention_mask`, `token_type_ids`, int32 `[batch, length]`.
The same `Preprocessor` runs in `tf.data` while training and inside the exported SavedModel; only devices without TensorFlow have another
(`tfpipeline.edge.tokenizer`, which a test holds to this one). It never drops a row: an empty text is `[CLS] [SEP]`. It does not judge rows either; that is `tfpipeline.data`.

| case | what comes out |
|---|---|
| text longer than `max_length` | cut at the end, `[SEP]` kept |
| pair longer than `max_length` | the longer text gives way first, token by token |
| word that the vocabulary cannot spell | one `[UNK]` |
| empty or blank text | `[CLS] [SEP]` |
| `[MASK]`, `[SEP]` typed by a user | plain text: brackets and a word, never a special token |
| bytes that are not UTF-8 | U+FFFD, which the tokenizer drops |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfpipeline.backbone import Backbone
from tfpipeline.cleaning import EMAIL, ENTITIES, LONGEST_WORD_BYTES, TAG
from tfpipeline.config import TextConfig
from tfpipeline.errors import BackboneError, ConfigError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_URL = r"(?i)\b(?:https?://|www\.)[^\s<>\"']+"
_MENTION = r"(^|[^\pL\pN_@./])@[\pL\pN_]+"
_TORN = r"(?i)\b(ai|are|ca|could|did|do|does|had|has|have|is|might|must|need|ought|sha|should|was|were|wo|would) n't\b"
_SPACES = r"[\s\pZ\x{85}]+"
# C0 and C1 controls and the replacement of undecodable bytes; tab and line ends are white space and handled first.
_CONTROL = r"[\x{00}-\x{08}\x{0E}-\x{1F}\x{7F}-\x{84}\x{86}-\x{9F}\x{FFFD}]"
# Anything that some step of `_clean_all` could change; a superset is safe, a miss is not (a test compares both ways on hard strings).
_PLAIN = r"[ -~]*"
_INVISIBLE = r"[\x{00}-\x{08}\x{0B}\x{0C}\x{0E}-\x{1F}\x{7F}-\x{9F}\p{Cf}\p{Co}\x{FFFD}]"
_MAY_NEED_CLEANING = r"(?: .*|.* |.*(?:[&<@]|(?i:://|www\.)|  ).*)"


class Preprocessor(tf.Module):
    """Cleans, tokenises, packs and pads. Holds the vocabulary; has no trained weights.

    Args:
        vocabulary: the word pieces; the index is the id. Must hold the five special tokens.
        config: cleaning and length settings.
        lower_case: whether to lower-case and strip accents (config.lower_case, with `auto` resolved by the backbone).
    """

    def __init__(self, vocabulary: Sequence[str], config: TextConfig, lower_case: bool) -> None:
        super().__init__(name="preprocessor")
        check_vocabulary(vocabulary, "vocabulary")
        self.vocabulary = tuple(vocabulary)
        self.config = config
        self.lower_case = lower_case
        self.lengths = bucket_lengths(config)
        self._cls_id = self.vocabulary.index("[CLS]")
        self._sep_id = self.vocabulary.index("[SEP]")
        self._pad_id = self.vocabulary.index("[PAD]")
        self._unk_id = self.vocabulary.index("[UNK]")
        # Its own lower-casing folds compatibility forms too (NFKC), so that the full-width comma, a word piece of bert-base-chinese, would become
        # an ASCII one; `_normalise` does what BERT's reference tokenizer does.
        # Its limit for one word counts bytes, BERT's 100 counts characters; with 100 bytes a Thai sentence, which has no blanks, would be one [UNK]
        # from 34 letters on. 400 bytes hold 100 characters of any script.
        self._tokenizer = tf_text.FastBertTokenizer(
            vocab=list(self.vocabulary), max_bytes_per_word=LONGEST_WORD_BYTES, token_out_type=tf.int32, lower_case_nfd_strip_accents=False
        )

    def __call__(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Token ids of a batch.

        Args:
            text: string `[batch]`.
            text_pair: string `[batch]`, or None where the task has single texts.

        Returns:
            `input_ids`, `attention_mask` (1 real, 0 padding), `token_type_ids` (1 for the second text): int32 `[batch, length]`, `length` being
            the smallest bucket that holds the longest row.
        """
        segments = [self.tokenize(part) for part in (text, text_pair) if part is not None]
        kept = self._kept_lengths([tf.cast(segment.row_lengths(), tf.int32) for segment in segments])
        total = tf.add_n(kept) + 1 + len(segments)
        buckets = tf.constant(self.lengths, tf.int32)
        longest = tf.reduce_max(tf.concat([total, buckets[:1]], axis=0))
        length = tf.reduce_min(tf.boolean_mask(buckets, buckets >= longest))
        # Packing by plain index arithmetic on [batch, length]: the ragged concatenation of tf_text.combine_segments took twice as long as
        # cleaning and tokenising together.
        position = tf.range(length)[tf.newaxis, :]
        ids = tf.where(position == 0, self._cls_id, tf.fill([tf.size(total), length], self._pad_id))
        types = tf.zeros_like(ids)
        offset = tf.ones_like(total)
        for number, (segment, keep) in enumerate(zip(segments, kept, strict=True)):
            local = position - offset[:, tf.newaxis]
            inside = (local >= 0) & (local < keep[:, tf.newaxis])
            index = tf.where(inside, tf.cast(segment.row_starts(), tf.int32)[:, tf.newaxis] + local, 0)
            # One value more, so that index 0 exists when all texts are empty.
            pieces = tf.concat([segment.flat_values, [self._pad_id]], axis=0)
            ids = tf.where(inside, tf.gather(pieces, index), ids)
            ids = tf.where(local == keep[:, tf.newaxis], self._sep_id, ids)
            if number == 0:
                offset += keep + 1
                continue
            types = tf.where((local >= 0) & (local <= keep[:, tf.newaxis]), number, types)
            offset += keep + 1
        return {
            "input_ids": ids,
            "attention_mask": tf.cast(position < total[:, tf.newaxis], tf.int32),
            "token_type_ids": types,
        }

    def clean(self, text: tf.Tensor) -> tf.Tensor:
        """The cleaned strings, string `[batch]`. Each step can be switched off in `[text]`."""
        return self._by_row(text, self._clean_all, tf.identity)

    def readable(self, text: tf.Tensor) -> tf.Tensor:
        """Cleaned, and then as BERT's reference tokenizer has it before it splits: what the word pieces are cut from."""
        lower = tf.strings.lower if self.lower_case else tf.identity
        return self._by_row(text, lambda part: self._normalise(self._clean_all(part)), lower)

    def _by_row(self, text: tf.Tensor, slow: Callable[[tf.Tensor], tf.Tensor], fast: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """`slow` on the rows in which it could find anything, `fast` on the others.

        Most rows of most corpora are plain ASCII; one scan finds the others, and only those pay.
        """
        if self.config.stop_words or self.config.rejoin_contractions:
            return slow(text)
        needs = ~tf.strings.regex_full_match(text, _PLAIN) | tf.strings.regex_full_match(text, _MAY_NEED_CLEANING)
        rows = tf.where(needs)
        return tf.cond(
            tf.size(rows) > 0,
            lambda: tf.tensor_scatter_nd_update(fast(text), rows, slow(tf.boolean_mask(text, needs))),
            lambda: fast(text),
        )

    def _clean_all(self, text: tf.Tensor) -> tf.Tensor:
        """Every step on every row; the order matters where a comment says so."""
        config = self.config
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
        if config.unicode != "none":
            text = tf_text.normalize_utf8(text, config.unicode)
        if config.strip_html:
            # Tags before entities: `&lt;b&gt;` is somebody writing about a tag, not a tag.
            text = tf.strings.regex_replace(text, TAG, " ")
            text = self._decode_entities(text)
        # URLs before mentions and e-mails: both may stand inside a URL.
        if config.replace_urls:
            text = tf.strings.regex_replace(text, _URL, "url")
        if config.replace_emails:
            text = tf.strings.regex_replace(text, EMAIL, "email")
        if config.replace_mentions:
            text = tf.strings.regex_replace(text, _MENTION, r"\1user")
        if config.strip_control:
            text = tf.strings.regex_replace(text, _CONTROL, "")
        if config.rejoin_contractions:
            text = tf.strings.regex_replace(text, _TORN, r"\1n't")
        if config.stop_words:
            words = "|".join(re.escape(word) for word in sorted(config.stop_words, key=len, reverse=True))
            text = tf.strings.regex_replace(text, rf"(?i)\b(?:{words})\b", " ")
        if config.collapse_spaces:
            text = tf.strings.strip(tf.strings.regex_replace(text, _SPACES, " "))
        return text

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Cleaned, tokenised, not yet cut: int32 ids `[batch, (pieces)]`."""
        # TF Text's kernel reads past a scalar's buffer, and aborts on an empty inner dimension: both would end the process that serves it.
        return self._tokenizer.tokenize(tf.reshape(self.readable(text), [-1]))

    def _normalise(self, text: tf.Tensor) -> tf.Tensor:
        """What BERT's reference tokenizer does to every text, whatever `[text]` says: invisible characters go; for uncased models NFD, non-spacing
        marks go, lower case.
        """
        text = tf.strings.regex_replace(text, _INVISIBLE, "")
        if self.lower_case:
            text = tf.strings.regex_replace(tf_text.normalize_utf8(text, "NFD"), r"\p{Mn}", "")
            text = tf.strings.lower(text, encoding="utf-8")
        return text

    def count(self, text: tf.Tensor, text_pair: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """`(tokens, unknown)`, int32 `[batch]`: the true length with special tokens before any cut, and how many pieces are `[UNK]`."""
        segments = [self.tokenize(part) for part in (text, text_pair) if part is not None]
        tokens = tf.add_n([segment.row_lengths() for segment in segments]) + 1 + len(segments)
        unknown = tf.add_n([tf.reduce_sum(tf.cast(segment == self._unk_id, tf.int64), axis=1) for segment in segments])
        return tf.cast(tokens, tf.int32), tf.cast(unknown, tf.int32)

    def count_read(self, tokens: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """`(tokens, unknown)` of what `__call__` gave, int32 and float32 `[batch]`: how many pieces the model reads, special tokens included, and which
        share of the others is `[UNK]` (0 where there is none).
        """
        ids = tokens["input_ids"]
        read = tf.reduce_sum(tokens["attention_mask"], axis=1)
        special = tf.reduce_sum(tf.cast((ids == self._cls_id) | (ids == self._sep_id), tf.int32), axis=1)
        unknown = tf.reduce_sum(tf.cast(ids == self._unk_id, tf.int32), axis=1)
        return read, tf.cast(unknown, tf.float32) / tf.cast(tf.maximum(read - special, 1), tf.float32)

    def _kept_lengths(self, lengths: list[tf.Tensor]) -> list[tf.Tensor]:
        """How many pieces of each segment fit, int32 `[batch]` each."""
        budget = self.config.max_length - 1 - len(lengths)
        if len(lengths) == 1:
            return [tf.minimum(lengths[0], budget)]
        first, second = lengths
        # Longest first: whoever is shorter than half the budget is kept whole; the odd token goes to the longer text, on a tie to the second.
        half = tf.where(first > second, (budget + 1) // 2, budget // 2)
        keep_first = tf.minimum(first, tf.maximum(budget - second, half))
        return [keep_first, tf.minimum(second, budget - keep_first)]

    @staticmethod
    def _decode_entities(text: tf.Tensor) -> tf.Tensor:
        for pattern, replacement in ENTITIES:
            text = tf.strings.regex_replace(text, pattern, replacement)
        return text


def bucket_lengths(config: TextConfig) -> tuple[int, ...]:
    """The padded lengths that occur, ascending, `max_length` last."""
    return (*sorted({length for length in config.length_buckets if length < config.max_length}), config.max_length)


def lower_cases(config: TextConfig, backbone: Backbone) -> bool:
    """`text.lower_case`, with `auto` resolved to what the backbone was trained with."""
    return backbone.lower_case if config.lower_case == "auto" else config.lower_case == "yes"


def known_vocabulary(config: TextConfig, backbone: Backbone) -> list[str] | None:
    """The configured vocabulary, else the backbone's; None: it is to be learned from the training texts."""
    path = Path(config.vocabulary) if config.vocabulary else backbone.vocabulary
    return None if path is None else read_vocabulary(path)


def read_vocabulary(path: Path) -> list[str]:
    """The word pieces of a `vocab.txt`, one a line, the line number being the id."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a vocabulary (one word piece a line, UTF-8): {error}.") from error
    if lines and lines[-1] == "":
        lines.pop()
    pieces = [line.rstrip("\r") for line in lines]
    check_vocabulary(pieces, str(path))
    return pieces


def check_vocabulary(vocabulary: Sequence[str], origin: str) -> None:
    """Raises BackboneError when a special token is missing or a piece stands twice (its id would be ambiguous)."""
    missing = [token for token in SPECIAL_TOKENS if token not in set(vocabulary)]
    if missing:
        raise BackboneError(f"{origin}: not a BERT vocabulary: {', '.join(missing)} missing among its {len(vocabulary)} word pieces.")
    if len(set(vocabulary)) != len(vocabulary):
        seen: set[str] = set()
        twice = next(piece for piece in vocabulary if piece in seen or seen.add(piece))  # type: ignore[func-returns-value]
        raise BackboneError(f"{origin}: word piece {twice!r} stands twice, so its id is ambiguous. Remove one.")


def learn_vocabulary(batches: Iterable[Sequence[str]], config: TextConfig, lower_case: bool) -> list[str]:
    """Learns word pieces from texts (`scratch:*` backbones).

    Args:
        batches: lists of raw texts; only the training split, so that test words stay unseen.
        config: `vocabulary_size` is the aim (the learner ends within a few percent of it); cleaning is applied as in training.
        lower_case: as in `Preprocessor`.
    """
    from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

    # The tokenizer of this Preprocessor is never used, but cannot be built without an ordinary word piece.
    cleaner = Preprocessor([*SPECIAL_TOKENS, "a"], config, lower_case)
    pretokenizer = tf_text.BertTokenizer(_lookup_of(SPECIAL_TOKENS), lower_case=False)._basic_tokenizer
    words: list[Any] = []
    for batch in batches:
        pieces = pretokenizer.tokenize(cleaner.readable(tf.constant(list(batch), tf.string)))
        words.append(pieces.flat_values.numpy())
    if not any(len(batch) for batch in words):
        raise ConfigError("no words to learn a vocabulary from: every training text is empty after cleaning.")
    counts = learner.count_words(words)
    learned = learner.learn(
        counts,
        vocab_size=config.vocabulary_size,
        reserved_tokens=list(SPECIAL_TOKENS),
        lower_thresh=2,  # the library's 10 is meant for corpora of millions and leaves a few thousand texts with half a vocabulary
        max_unique_chars=config.vocabulary_size,  # its 1,000 would turn most of Chinese into [UNK]
    )
    return [piece.decode() if isinstance(piece, bytes) else piece for piece in learned]


def _lookup_of(pieces: Sequence[str]) -> Any:
    initializer = tf.lookup.KeyValueTensorInitializer(list(pieces), tf.range(len(pieces), dtype=tf.int64))
    return tf.lookup.StaticVocabularyTable(initializer, num_oov_buckets=1)
