"""The teacher: what it holds, how it follows, and that nothing else moves it."""

from __future__ import annotations

import copy

import pytest
import torch
from reference.jets import SIZES, random_batch, randomise, tiny_encoder
from torch import nn

from jetssl_cli.objectives.ema import Teacher


class Student(nn.Module):
    """An encoder and a head, with a buffer that changes."""

    def __init__(self):
        super().__init__()
        self.encoder = tiny_encoder()
        self.head = nn.BatchNorm1d(16)
        self.other = nn.Linear(2, 2)


def pair():
    student = Student()
    teacher = Teacher({"encoder": student.encoder, "head": student.head})
    return randomise(student, 5), teacher


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_it_begins_as_a_copy_that_shares_nothing():
    student = Student()
    teacher = Teacher({"encoder": student.encoder, "head": student.head})
    parts = teacher.parts
    for name in ("encoder", "head"):
        ours, theirs = parts[name].state_dict(), getattr(student, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    storages = [{t.data_ptr() for t in m.state_dict().values()} for m in (student, teacher)]
    assert not storages[0] & storages[1]
    assert not any(name.startswith("parts.other") for name in teacher.state_dict())


@pytest.mark.parametrize("power", [1.0, 3.5])
def test_following_is_the_moving_average_of_every_weight(power):
    student, teacher = pair()
    wanted = {name: value.clone() for name, value in teacher.parts.named_parameters()}
    assert {"encoder.registers", "encoder.embed_id.weight", "head.weight"} <= wanted.keys()
    for step in range(1, 6):
        randomise(student, step)
        student.head(torch.randn(5, 16))
        teacher.follow(student, power)
        kept = (1 - 1 / step) ** power
        theirs = dict(student.named_parameters())
        wanted = {n: kept * v + (1 - kept) * theirs[n].detach() for n, v in wanted.items()}
        for name, value in teacher.parts.named_parameters():
            torch.testing.assert_close(value.detach(), wanted[name], rtol=1e-5, atol=1e-5)
    buffers = dict(student.named_buffers())
    assert buffers["head.running_mean"].any()
    for name, value in teacher.parts.named_buffers():
        assert torch.equal(value, buffers[name]), name


@pytest.mark.parametrize("steps", [100, 1000])
def test_it_remembers_the_same_share_of_a_run_of_any_length(steps):
    """Of a weight that grows by 1 in each step it holds power / (power + 1) of the last."""
    student = nn.Module()
    student.weight = nn.Linear(1, 1, bias=False)
    teacher = Teacher({"weight": student.weight})
    for step in range(steps):
        nn.init.constant_(student.weight.weight, step + 1)
        teacher.follow(student, 9.0)
    assert teacher.parts["weight"].weight.item() == pytest.approx(0.9 * steps, rel=0.02)


def test_the_share_of_a_late_step_keeps_its_digits():
    student = nn.Module()
    student.weight = nn.Linear(1, 1, bias=False)
    teacher = Teacher({"weight": student.weight})
    nn.init.zeros_(teacher.parts["weight"].weight)
    nn.init.ones_(student.weight.weight)
    teacher.steps += 10**7 - 1
    teacher.follow(student, 10.0)
    assert teacher.parts["weight"].weight.item() == pytest.approx(1e-6, rel=1e-5)


def test_the_student_is_left_alone():
    student, teacher = pair()
    before = state(student)
    teacher.follow(student, 2.0)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    with torch.no_grad():
        student.encoder.out.bias += 1
    assert not torch.equal(teacher.encoder.out.bias, student.encoder.out.bias)


def test_it_stays_in_evaluation_and_wants_no_gradients():
    student, teacher = pair()
    student.add_module("teacher", teacher)
    student.train()
    assert student.head.training
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.follow(student, 2.0)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.is_leaf and p.grad is None for p in teacher.parameters())


def test_its_state_is_restored():
    student, teacher = pair()
    teacher.follow(student, 2.0)
    _, other = pair()
    other.load_state_dict(copy.deepcopy(teacher.state_dict()))
    randomise(student, 3)
    for one in (teacher, other):
        one.follow(student, 2.0)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in teacher.state_dict().items())


def test_its_encoder_encodes():
    student, teacher = pair()
    batch = random_batch(SIZES)
    teacher.follow(student, 2.0)
    found, wanted = teacher.encoder(batch), student.encoder(batch)
    torch.testing.assert_close(found.tokens, wanted.tokens)
