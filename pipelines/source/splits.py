"""Splits by the names of folders and files."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from joulecache.pipelines.core.quantities import listed
from joulecache.pipelines.source.config import SOURCE_SPLITS
from joulecache.pipelines.source.naming import first_folders
from joulecache.pipelines.source.records import SourceError

_EVALUATION = "evaluation"  # val where the source has a test split, else test
_WORDS = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("val", "valid", "validate", "validation", "dev", "devel", "development"), "val")
    | dict.fromkeys(("test", "testing", "holdout", "heldout"), "test")
    | dict.fromkeys(("eval", "evaluation"), _EVALUATION)
)
_ADDITIONS = ("set", "data", "dataset", "images", "imgs", "photos", "split")  # train_set, testdata
_ALONE = ("",)
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_TWO_WORDS = re.compile(r"(hold|held)[ _-]out")
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIRST_WORD = re.compile(r"[^\W\d_]*")


def split_words(words: Iterable[str]) -> dict[str, str]:
    """Return the split of each word that names one.

    Words may have a common part, like ``seg_train`` and ``seg_test``, or ``train2017`` and ``val2017``, or an addition: ``training_set``.
    Numbers may differ where words are no splits otherwise: ``train`` and ``test1``.
    """
    parsed = {word: _parsed(word) for word in sorted(words)}
    splits = _alike(parsed)
    if len(set(splits.values())) < 2:
        numberless = {
            word: (split, tuple(token for token in rest if not token.isdigit()))
            for word, (split, rest) in parsed.items()
        }
        found = _alike(numberless)
        splits = found if len(set(found.values())) > 1 else splits
    return splits


def _alike(parsed: Mapping[str, tuple[str | None, tuple[str, ...]]]) -> dict[str, str]:
    """Return the split of each word of those that have the same other tokens."""
    by_rest: dict[tuple[str, ...], dict[str, str]] = {}
    for word, (split, rest) in parsed.items():
        if split is not None:
            by_rest.setdefault(rest, {})[word] = split
    if not by_rest:
        return {}
    # the plain names first: the others of train, test, train_labels, test_labels are no splits
    splits = by_rest.get(_ALONE) or max(by_rest.values(), key=len)
    evaluation = "val" if "test" in splits.values() else "test"
    return {word: evaluation if split == _EVALUATION else split for word, split in splits.items()}


def lone_split(words: Iterable[str]) -> tuple[str, str] | None:
    """Return the first word that names a split by itself, and the split; None without such a word."""
    alone = sorted(word for word in words if _parsed(word)[1] == _ALONE)
    return next(iter(split_words(alone).items()), None)


def _parsed(word: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the split in a word, None unless there is one, and the other tokens, with "" in its place."""
    words = _TWO_WORDS.sub(r"\1out", _CAMEL_CASE.sub("_", word).lower())
    tokens = [_split_token(token) for token in _TOKEN.findall(words)]
    found = [token for token in tokens if token in _WORDS]
    if len(found) != 1:
        return None, tuple(tokens)
    return _WORDS[found[0]], tuple("" if token in found else token for token in tokens if token not in _ADDITIONS)


def _split_token(token: str) -> str:
    """Return a token without an addition: ``train`` for ``trainset``."""
    return next(
        (token[: -len(end)] for end in _ADDITIONS if token.endswith(end) and token[: -len(end)] in _WORDS), token
    )


def choose_splits(counts: Mapping[str, int]) -> dict[str, str] | None:
    """Return the split of each word, from the number of images of each; None if the words are no splits.

    Raises:
        SourceError: Only some words are splits, none is train, two are the same split, or they have different other words.
    """
    splits = split_words(counts)
    if len(set(splits.values())) < 2:
        alone = {_parsed(word)[0] for word in counts}
        if "train" in alone and None not in alone and len(alone) > 1:
            raise SourceError(
                f"{_quoted(counts)} look like splits with different names: name the splits, like {splits_option(counts)}; if they are "
                "classes, pass --splits train=."
            )
        return None
    twice = [word for word, split in splits.items() if list(splits.values()).count(split) > 1]
    others = sorted(set(counts) - set(splits))
    if twice:
        problem = f"{_quoted(twice)} are both {splits[twice[0]]}"
    elif others:
        problem = f"{_quoted(splits)} are splits, but {_quoted(others)} {'is' if len(others) == 1 else 'are'} not"
    elif "train" not in splits.values():
        raise SourceError(
            f"{_quoted(splits)} are splits, but there is no train; if they are classes, pass --splits train=."
        )
    else:
        return splits
    raise SourceError(f"{problem}: name the splits, like {splits_option(counts)}")


def splits_option(counts: Mapping[str, int]) -> str:
    """Return an option that names the splits among words, from the number of images of each."""
    by_size = sorted(counts, key=lambda word: (word.lower() not in SOURCE_SPLITS, -counts[word], word))
    known = split_words(counts)
    named: dict[str, str] = {}
    for word in by_size:
        if word in known:
            named.setdefault(known[word], word)
    others = [word for word in by_size if word not in known]
    wanted = SOURCE_SPLITS if len(counts) == len(SOURCE_SPLITS) and not known else ("train", "test")
    for split in wanted if "train" not in named or len(named) == 1 else ():
        if others and split not in named:
            named[split] = others.pop(0)
    text = ",".join(f"{split}={named[split]}" for split in SOURCE_SPLITS if split in named)
    rest = ", which leaves out all others" if len(named) < len(counts) else ""
    return f"--splits {shlex.quote(text)}{rest}"


def held_out(splits: Sequence[str | None]) -> Sequence[str | None]:
    """Return splits with None for train if there is no val: a hash of the keys then holds out a part of it."""
    if "val" in splits or "train" not in splits:
        return splits
    return [None if split == "train" else split for split in splits]


def file_splits(names: Sequence[str], given: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the split of each file by its first folder, or by the first word of its name: ``train-00000-of-00010``.

    Args:
        names: Paths of the files.
        given: The folder or word of each split. Default: known names.

    Returns:
        The split of each file, without files of no split; None if names are no splits, or no file has a given name.

    Raises:
        SourceError: The names of some files, but not of all, are splits, or no file has one of the given names.
    """
    if given is not None:
        return _given_files(names, given)
    folders = first_folders(names)[0]
    for words in (folders, [_leading_words(name.rpartition("/")[2]) for name in names]):
        splits = choose_splits(Counter(words)) if all(words) else None
        if splits is not None:
            return {name: splits[word] for name, word in zip(names, words, strict=True)}
        lone = lone_split(words)
        if lone is not None and lone[1] != "train" and len(set(words)) > 1:
            raise SourceError(
                f"{lone[0]!r} looks like a split, but others do not: name the splits, like {splits_option(Counter(words))}"
            )
    _refuse_splits_below(names, folders)
    return None


def _refuse_splits_below(names: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse files whose first folders have splits inside: ``full/train/0.parquet`` and ``small/test/0.parquet``."""
    inside = [name[: name.rfind("/")].split("/") for name, folder in zip(names, folders, strict=True) if folder]
    found = split_words(dict.fromkeys(part for parts in inside for part in parts))
    if len(set(folders)) > 1 and len(set(found.values())) > 1:
        word = min(folders)
        raise SourceError(
            f"{_quoted(set(folders))} have splits inside, {_quoted(found)}: use the files of one of them, as with {word!r} in the "
            "pattern in place of a wildcard"
        )


def _leading_words(file: str) -> str:
    """Return a file name up to its first word that is a split: ``cifar10-train`` of ``cifar10-train.tfrecord-0``; else its first word."""
    file = file.lower()
    for token in _TOKEN.finditer(file):
        if _split_token(token.group()) in _WORDS:
            return file[: token.end()]
    word = _FIRST_WORD.match(file)
    return (word and word.group()) or file


def _given_files(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str] | None:
    folders = first_folders(names)[0]
    splits: dict[str, str] = {}
    missing = []
    for split, word in sorted(given.items(), key=lambda item: len(item[1])):  # the longest name decides
        start = re.compile(rf"{re.escape(word)}(?![^\W\d_])")
        found = [
            name
            for name, folder in zip(names, folders, strict=True)
            if word in (".", folder) or name.startswith(f"{word}/") or start.match(name.rpartition("/")[2])
        ]
        splits |= dict.fromkeys(found, split)
        missing += [] if found else [f"{split}={word}"]
    if not splits:
        return None
    if missing:
        raise SourceError(
            f"no file is in split {missing[0]}: --splits must name the first folder or the first word of files, such as {min(names)!r}"
        )
    return splits


def _quoted(words: Collection[str]) -> str:
    return listed([repr(word) for word in sorted(words)])
