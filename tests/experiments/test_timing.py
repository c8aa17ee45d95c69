import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from experiments.timing import StepTimer, fit_in_turns


class Traced(BoringModel):
    """Notes each training step in a list that several models share."""

    def __init__(self, name, trace):
        super().__init__()
        self.name, self.trace = name, trace

    def training_step(self, batch, batch_idx):
        self.trace.append(self.name)
        return super().training_step(batch, batch_idx)


class Failing(BoringModel):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("broken model")


def trainer(steps, callbacks=()):
    return pl.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=list(callbacks),
    )


def test_timer_leaves_out_warm_up_and_validation():
    clock = [0.0]

    class Clocked(BoringModel):
        def training_step(self, batch, batch_idx):
            clock[0] += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            clock[0] += 1000

    timer = StepTimer(warmup=1, clock=lambda: clock[0])
    fit = trainer(6, [timer])
    fit.limit_val_batches, fit.val_check_interval = 1, 3
    fit.fit(Clocked())
    assert timer.seconds == [1.0] * 5
    assert timer.steps_per_second() == 1.0


def test_timer_without_enough_steps_has_no_speed():
    assert StepTimer().steps_per_second() is None


def test_trainers_take_turns():
    trace: list[str] = []
    fits = [(trainer(12), Traced(name, trace), None) for name in "ab"]
    seconds = fit_in_turns(fits, turns=4, steps=3)
    assert [len(taken) for taken in seconds] == [4, 4]
    turns = ["".join(trace[start : start + 3]) for start in range(0, 24, 3)]
    assert sorted(turns) == ["aaa"] * 4 + ["bbb"] * 4
    assert all(set(turns[start : start + 2]) == {"aaa", "bbb"} for start in range(0, 8, 2))


def test_a_failing_trainer_releases_the_others():
    with pytest.raises(RuntimeError, match="broken model"):
        fit_in_turns([(trainer(4), Traced("a", []), None), (trainer(4), Failing(), None)], turns=2, steps=2)
