"""A user's module for the tests of `lsfast grid`, and the command over it."""

import importlib
import sys

import pytest

from lsfast import cli

MODULE = "grid_command_user"
SOURCE = '''
import torch
from torch import nn

class Batches:
    """Batches that are read anew at every pass."""
    passes = 0

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        Batches.passes += 1
        yield from self.batches

def mlp():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    return model, nn.CrossEntropyLoss(), Batches((x[:10], y[:10]), (x[10:], y[10:]))

class Root(nn.Module):
    """sqrt(w): NaN for w < 0."""
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((1, 1), 0.5))

    def forward(self, x):
        return x @ self.w.sqrt()

def root():
    return Root(), nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1))

class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

def branching():
    return Branching(3, 2), nn.MSELoss(), (torch.rand(5, 3), torch.rand(5, 2))

def fails():
    raise RuntimeError("no model")
'''


@pytest.fixture(autouse=True)
def user_folder(tmp_path, monkeypatch):
    """A module of a user's in the current directory."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if entry)])
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def run(*arguments, model="mlp", out="out"):
    return cli.main(["grid", "--model", f"{MODULE}:{model}", "--out", str(out), *map(str, arguments)])
