"""What a pretraining run holds, built from its config or resumed from its last checkpoint."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.loader import Loader
from data_prep.run_order import write_order
from data_prep.shards import Shards
from model.attention_backends import Choice
from model.config import ModelConfig
from model.flops import mfu, parameters
from model.heads import Model
from pretrain.architecture import check_architecture
from pretrain.branch import key_of, rate_notes, stored_config
from pretrain.build import attention_choice, build_engine, float8_notes
from pretrain.checks import check_supply
from pretrain.config import PretrainConfig
from pretrain.evaluate import Validation
from pretrain.export import ModelExport
from pretrain.objectives import make_objective
from pretrain.objectives.draws import VALIDATION_SEED
from pretrain.objectives.objective import Objective
from pretrain.resume import restore, starting_point
from pretrain.samples import Samples
from pretrain.verify import verify_data
from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.saver import Saver
from runtime.compilation import Compilation
from runtime.dist import Ranks
from runtime.engine import Engine, StepResult
from runtime.health import Health, Verdict
from runtime.metrics import Clock, MetricsLog, device_name, record_event
from runtime.progress import Progress
from runtime.run_directory import (
    describe_run,
    prepare_run_directory,
)
from runtime.sections import held_as
from runtime.sinks import Histogram, open_sinks


@dataclass
class Session:
    """A run in memory: what the loop reads and what a checkpoint stores."""

    config: PretrainConfig
    ranks: Ranks
    model_config: ModelConfig
    objective: Objective
    loader: Loader
    validation: Validation | None  # None where there is never an evaluation
    engine: Engine
    compilation: Compilation
    log: MetricsLog | None  # on the main rank
    progress: Progress
    saver: Saver
    export: ModelExport
    samples: Samples | None  # None where there is never one
    health: Health
    beat: Callable[[], None]  # a sign of life for the watchdog
    step: int = 0
    data_step: int = 0  # of the batch in work; ahead of `step` where data was left out
    tokens_seen: int = 0
    saved_step: int | None = None
    branched_from: dict[str, Any] | None = None  # of a run that began from another's checkpoint
    attention_length: int = 0  # tokens that one attends to, for the count of FLOPs

    @property
    def positions(self) -> int:
        """Those of the batch in work, of all ranks."""
        return self.config.batch.sizes.at(self.data_step) * self.config.data.seq_len

    def save(self) -> None:
        """Have a checkpoint of this step written, while training goes on. Collective."""
        if self.saved_step == self.step:
            return
        state = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "loader": self.loader.state_dict(),
            "health": self.health.state_dict(),
            "loss_scale": self.engine.loss_scale_state(),
            "config": self.config.model_dump(mode="json"),
            "versions": provenance.versions(),
            "world_size": self.ranks.world_size,
            **({"branched_from": self.branched_from} if self.branched_from else {}),
        }
        self.saver.save(self.step, self.engine, self.export, state)
        self.saved_step = self.step

    def record(self, **values: Any) -> None:
        """Write a metrics record of this step (main rank)."""
        if self.log is not None:
            self.log.record(self.step, tokens_seen=self.tokens_seen, **values)

    def note(self, kind: str, message: str, **values: Any) -> None:
        """Say what befell the run, and write it to events.jsonl (main rank)."""
        if self.ranks.is_main:
            self.progress.say(f"step {self.step}: {message}")
            record_event(self.config.run_dir, self.step, kind, message=message, **values)

    def tell_compilation(self) -> None:
        """Say what was compiled since the last time, and how long it took (main rank)."""
        if (news := self.compilation.news()) is not None:
            numbers = {"graphs": news.graphs, "seconds": news.seconds, "saved_s": news.saved_s}
            self.note("compile", str(news), **numbers)

    def record_samples(self) -> None:
        """Record what the model makes of the prompts. Collective."""
        if self.samples is None:
            return
        for number, sample in enumerate(self.samples(self.engine, self.beat)):
            assert self.log is not None
            self.log.sample(self.step, f"samples/{number}", **sample._asdict())

    def record_histograms(self) -> None:
        """Tell the sinks how the values of every parameter are spread. Collective."""
        if not self.config.log.has_sinks:
            return
        names = self.engine.parameter_shapes().keys() if self.ranks.is_main else ()
        for name, parameter in self.engine.full_parameters(names):
            self.beat()
            assert self.log is not None
            self.log.histogram(self.step, f"parameters/{name}", Histogram.of(parameter))

    def describe_order(self) -> None:
        """Store which data each step is made of, for `python -m data_prep which` (main rank)."""
        if self.ranks.is_main:
            write_order(self.config.run_dir, self.loader.planned())

    def sources(self) -> dict[str, Any]:
        """How much of each source went into the run so far; nothing where there is but one."""
        if len(self.loader.shards) == 1:
            return {}
        return {"tokens_by_source": self.loader.tokens, "epochs_by_source": self.loader.epochs}

    def _tell_sources(self) -> None:
        """Record, and say, how much of each source went into the run so far."""
        if len(self.loader.shards) == 1:
            return
        tokens, epochs = self.loader.tokens, self.loader.epochs
        names = [str(shards.directory) for shards in self.loader.shards]
        self.record(**self.sources())
        told = [
            f"{name} {count:,} tokens ({100 * count / max(sum(tokens), 1):.2f} %, {passed:.2f} "
            "epochs)"
            for name, count, passed in zip(names, tokens, epochs, strict=True)
        ]
        self.progress.say(f"data so far: {'; '.join(told)}")

    def judge(self, result: StepResult) -> Verdict | None:
        """What follows from a step, the same on all ranks; None where nothing was wrong."""
        ratio = result.update_ratio
        return self.health.judge(
            self.data_step,
            applied=result.applied,
            has_gradients=math.isfinite(float(result.grad_norm)),
            is_finite=ratio is None or math.isfinite(ratio),
            at_lowest_scale=self.engine.is_at_lowest_scale,
        )

    def close(self) -> None:
        """Wait for the last save, and end what runs beside the loop. Collective."""
        self.saver.wait()
        self.loader.close()
        if self.log is not None:
            self._tell_sources()
            self.log.close()

    def mfu(self, tokens_per_second: float, predicted_fraction: float) -> dict[str, float | None]:
        """Model-FLOPs utilisation in both attention conventions; None on an unknown device."""
        found = mfu(
            tokens_per_second,
            self.model_config,
            self.attention_length,
            device_name(self.ranks.device),
            self.ranks.world_size,
            held_as(self.config.precision),
            head=self.objective.head,
            predicted_fraction=predicted_fraction,
        )
        return {"mfu": found and found.full, "mfu_causal": found and found.causal}


def start(config: PretrainConfig, ranks: Ranks, beat: Callable[[], None]) -> Session:
    """Build a run, or take up the newest whole checkpoint in its directory. Collective.

    beat: called now and then where a long wait is no hang.
    """
    prepare_run_directory(config.run_dir)
    dist.together(lambda: verify_data(config, beat), only_main=True)
    train = [Shards(source.path, "train") for source in config.data.sources]
    model_config = config.model_config_for(train[0])
    objective = make_objective(config, train, config.run.seed)
    loader = _loader(config, train, objective, ranks)
    check_supply(config, loader.order)
    checkpoint = starting_point(config, ranks)
    if checkpoint is not None:
        check_architecture(model_config, checkpoint, key_of(config, checkpoint.path))
    iter(loader)  # workers start while the engine is built
    compilation = Compilation(config.run_dir, ranks, is_wanted=config.compile)
    choice = attention_choice(config, model_config, ranks.device)
    engine = build_engine(config, model_config, objective.head, ranks, compilation, choice)
    progress = Progress(config.total_steps, stream=None if ranks.is_main else _devnull())
    session = Session(
        config,
        ranks,
        model_config,
        objective,
        loader,
        _validation(config),
        engine=engine,
        compilation=compilation,
        log=None,
        progress=progress,
        saver=Saver(
            config.run_dir / "checkpoints",
            ranks,
            config.checkpoint,
            say=progress.say,
            beat=beat,
        ),
        export=_export(engine, objective, train[0], ranks),
        samples=_samples(config, objective, train[0]),
        health=Health(config.health),
        beat=beat,
        attention_length=_attention_length(loader),
    )
    if checkpoint is not None:
        restore(session, checkpoint)
    describe_run(config.run_dir, config)
    session.describe_order()
    if ranks.is_main:
        session.log = _open_log(config, ranks, session.step)
        _introduce(session, checkpoint, choice)
    return session


def _loader(
    config: PretrainConfig, train: list[Shards], objective: Objective, ranks: Ranks
) -> Loader:
    return Loader(
        list(zip(train, [source.weight for source in config.data.sources], strict=True)),
        global_batch_size=config.batch.global_batch_size,
        seed=config.run.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        layout=objective.layout,
        collate=objective.collate,
        workers=_workers(config, ranks),
        ramp=config.batch.sizes.ramp,
        **config.data.mixing,
    )


def _open_log(config: PretrainConfig, ranks: Ranks, resume_step: int) -> MetricsLog:
    clock = Clock(config.run_dir, ranks.world_size, device_name(ranks.device))
    sinks = open_sinks(config.run_dir, config.run.name, config.log, config)
    return MetricsLog(config.run_dir, clock, resume_step=resume_step, sinks=sinks)


def _export(engine: Engine, objective: Objective, train: Shards, ranks: Ranks) -> ModelExport:
    net = engine.module
    assert isinstance(net, Model)
    begins = objective.layout.by_document and net.head == "causal_lm"
    return ModelExport(net, ranks, train.tokenizer_dir, train.eod_id if begins else None)


def _samples(config: PretrainConfig, objective: Objective, train: Shards) -> Samples | None:
    if not config.evaluate.prompts or not config.evaluate.every_steps:
        return None
    return Samples(config, train, begins=objective.layout.by_document)


def _workers(config: PretrainConfig, ranks: Ranks) -> int:
    """Processes that make batches: none where they would take cores from the training itself."""
    if config.data.workers is not None:
        return config.data.workers
    return 2 if ranks.device.type == "cuda" else 0


def _validation(config: PretrainConfig) -> Validation | None:
    if not config.evaluate.every_steps:
        return None
    shards = Shards(config.data.valid_path, "valid")
    return Validation(config, shards, make_objective(config, [shards], VALIDATION_SEED))


def _attention_length(loader: Loader) -> int:
    """Tokens of a row, or of an isolated document on average: never more work than was done."""
    if loader.layout.packing == "concat":
        return loader.layout.seq_len
    report = loader.packing_report(count_cut=False)
    # A window's first document and each that begins in it, or each piece of a document.
    isolated = report.segments + (0 if loader.layout.by_document else report.documents)
    return max(1, report.tokens // isolated) + loader.layout.overhead


def _devnull() -> Any:
    return Path(os.devnull).open("w")  # open as long as the run lives


def _introduce(session: Session, checkpoint: CheckpointInfo | None, choice: Choice) -> None:
    config, ranks, say = session.config, session.ranks, session.progress.say
    say(
        f"{session.model_config.family} model, "
        f"{parameters(session.model_config, session.objective.head) / 1e6:.2f} M parameters; "
        f"{config.objective}; {config.precision}, {config.parallel}, "
        f"{ranks.world_size} × {device_name(ranks.device)}"
    )
    say(str(choice))
    if config.precision == "fp8":
        net = session.engine.module
        assert isinstance(net, Model)
        for note in float8_notes(net, ranks.device, is_compiled=session.compilation.is_on):
            say(note)
    if problem := session.compilation.problem:
        session.note(
            "compile", f"compile: true, and this machine cannot: {problem}; goes on without"
        )
    report = session.loader.packing_report(session.loader.layout.by_document)
    epochs = config.batch.sizes.first(config.total_steps) / report.samples
    per_step = f"{config.positions(1):,} to " if config.batch.ramp else ""
    say(
        f"{config.total_steps:,} steps of {per_step}{config.tokens_per_step:,} tokens = "
        f"{config.positions(config.total_steps):,} ({epochs:.2f} epochs); run directory "
        f"{config.run_dir}"
    )
    cut = report.cut_documents
    say(
        f"{session.objective.layout.packing}: {100 * report.utilisation:.1f} % of positions hold "
        f"tokens; {'any' if cut is None else f'{cut:,}'} of {report.documents:,} documents cut"
    )
    # At most 4 bytes each for the weight, its master and two moments.
    session.saver.look_ahead(16 * parameters(session.model_config, session.objective.head))
    if checkpoint is None:
        return
    if session.saved_step is not None:
        say(f"resumed from {checkpoint.path}, step {session.step}")
        return
    session.note("branch", f"branches from {checkpoint.path}, which stays as it is")
    for note in rate_notes(config, stored_config(checkpoint.path), session.step):
        say(f"warning: {note}")
