"""Movements are told from roundings, and positions found on any axis."""

import pytest
import torch

from rightbatch.coupling.movement import difference, shares, touched
from rightbatch.coupling.perturbation import Question, between_examples, one_row


def test_equal_bits_and_numbers_that_are_none() -> None:
    nan, inf = torch.nan, torch.inf
    a = torch.tensor([1.0, nan, inf, -inf, nan, 2.0])
    b = torch.tensor([1.0, nan, inf, inf, 3.0, 2.5])
    assert difference(a, b).tolist() == [0, 0, 0, inf, inf, 0.5]


def test_roundings_and_spread_are_no_movement() -> None:
    a = torch.tensor([1.0, 100.0, 0.0, -1e9])
    assert difference(a, a * (1 + 1e-6) + 1e-6).tolist() == [0, 0, 0, 0]
    assert difference(a, a + 1e-2)[:3].min() > 0  # whatever the largest is
    assert difference(a, a + 1e-2, a - 1e-2).tolist() == [0, 0, 0, 0]
    assert difference(a, a + 1, a + 1e-2)[:3].min() > 0
    low = a.bfloat16()
    assert difference(low, low * 1.01).tolist() == [0, 0, 0, 0]
    assert difference(low, low * 2)[[0, 1, 3]].min() > 0


def test_complex_and_whole_numbers() -> None:
    a = torch.tensor([1 + 1j, 2])
    assert difference(a, a + 1j).tolist() == [[0, 1], [0, 1]]
    assert difference(torch.tensor([True]), torch.tensor([False])).tolist() == [1]


@pytest.mark.parametrize("shape", ["bt", "tb", "tbt", "(bt)", "(tb)"])
def test_examples_on_any_axis(shape: str) -> None:
    rows, steps = 4, 3
    for question in between_examples(rows):
        clean = question.changed[:, None].expand(rows, steps).double()
        leaking = torch.ones(rows, steps).double()
        for moved, answer in ((clean, False), (leaking, True)):
            laid = {
                "bt": moved,
                "tb": moved.T,
                "tbt": moved.T[:, :, None].expand(steps, rows, steps),
                "(bt)": moved.flatten(),
                "(tb)": moved.T.flatten(),
            }[shape]
            assert touched(laid, question) is answer


@pytest.mark.parametrize("shape", ["bt", "tb", "bht", "(bt)", "(tb)"])
def test_steps_of_documents_on_any_axes(shape: str) -> None:
    changed = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    question = Question(
        across="documents", axes=(0, 1), changed=changed, watched=~changed
    )
    for moved, answer in ((changed.double(), False), (torch.ones(2, 3), True)):
        laid = {
            "bt": moved[..., None].expand(2, 3, 5),
            "tb": moved.T,
            "bht": moved[:, None].expand(2, 7, 3),
            "(bt)": moved.flatten(),
            "(tb)": moved.T.flatten(),
        }[shape]
        assert touched(laid, question) is answer


def test_what_has_no_examples_says_nothing() -> None:
    assert touched(torch.ones(3, 5), one_row(0, 4)) is None
    assert touched(torch.tensor(1.0), one_row(0, 4)) is None
    assert touched(torch.ones(4, 0), one_row(0, 4)) is None


def test_shares() -> None:
    moved = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    assert shares(moved, one_row(1, 3)) == (5.0, 9.0)
