"""How far a result is from the same in fp64."""

import torch


def assert_close(found, want, bound=1e-5):
    """Each tensor within `bound` of the norm of the wanted one, and finite."""
    assert len(found) == len(want)
    for number, (ours, theirs) in enumerate(zip(found, want, strict=True)):
        assert ours.shape == theirs.shape, number
        assert ours.isfinite().all(), f"{number}: not finite"
        difference = (ours.double() - theirs.double()).norm()
        assert difference <= bound * theirs.double().norm(), (number, float(difference))


def outputs_and_gradients(function, inputs, dtype):
    """What `function` returns for copies of the inputs, and the gradients of a fixed sum of it."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    onto = [torch.linspace(-1, 2, t.numel(), dtype=dtype).sin().view_as(t) for t in outputs]
    wanted = [leaf for leaf in leaves if leaf is not None]
    return [t.detach() for t in outputs], list(torch.autograd.grad(outputs, wanted, onto))


def assert_same(once, again):
    """Outputs and gradients of two runs, bit by bit."""
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
