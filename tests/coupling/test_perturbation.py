"""Changes cover every pair, stay possible, and keep what they must."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.coupling.perturbation import (
    between_documents,
    between_examples,
    changed_batch,
    one_row,
)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 70))
def test_every_ordered_pair_is_asked_for(count: int) -> None:
    questions = list(between_examples(count))
    assert len(questions) == 2 * (count - 1).bit_length()
    asked = {
        (int(i), int(j))
        for q in questions
        for i in q.changed.nonzero()
        for j in q.watched.nonzero()
    }
    assert asked == set(itertools.permutations(range(count), 2))


def test_documents_are_told_apart_within_their_row() -> None:
    documents = torch.tensor([[5, 5, 7, 9], [2, 3, 3, 3]])
    asked = set()
    for q in between_documents(documents):
        assert torch.equal(q.changed, ~q.watched)
        for row, i, j in itertools.product(range(2), range(4), range(4)):
            if q.changed[row, i] and q.watched[row, j]:
                asked.add((row, int(documents[row, i]), int(documents[row, j])))
    pairs = {(0, a, b) for a, b in itertools.permutations((5, 7, 9), 2)}
    assert asked == pairs | {(1, 2, 3), (1, 3, 2)}


def test_another_example_is_the_same_one_in_all_tensors() -> None:
    number = torch.arange(6)
    batch = {"x": number.float(), "y": 10 * number, "shared": torch.tensor(3)}
    changed = changed_batch(batch, one_row(2, 6), "another example", seed=0)
    assert torch.equal(10 * changed["x"].long(), changed["y"])
    assert (changed["x"] != batch["x"]).tolist() == [False, False, True] + [False] * 3
    assert changed["shared"] is batch["shared"]


def test_noise_is_for_floats_and_leaves_infinities() -> None:
    x = torch.tensor([[1.0, -torch.inf], [2.0, 5.0]])
    labels = torch.tensor([0, 7])
    batch = changed_batch((x, labels), one_row(0, 2), "noise", seed=0)
    assert batch[0][0, 1] == -torch.inf
    assert batch[0][0, 0] != 1
    assert torch.equal(batch[0][1], x[1])
    assert torch.equal(batch[1], labels)


def test_whole_numbers_are_those_seen_and_masks_stay() -> None:
    tokens, mask = torch.randint(3, 9, (4, 50)), torch.randint(2, (4, 50))
    batch = {"tokens": tokens, "mask": mask, "flags": mask.bool(), "number": tokens + 1}
    changed = changed_batch(batch, one_row(1, 4), "noise", seed=0, kept=tokens + 1)
    assert set(changed["tokens"][1].tolist()) <= set(tokens.flatten().tolist())
    assert not torch.equal(changed["tokens"], tokens)
    for name in ("mask", "flags", "number"):
        assert torch.equal(changed[name], batch[name])
