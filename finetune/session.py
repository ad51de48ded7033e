"""What a fine-tuning run holds, built from its config or resumed from its last checkpoint."""

import io
import operator
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import checkpoint
from finetune.adapters.attach import attached, without_decay
from finetune.batches import Indices, Plan
from finetune.config import (
    BEST,
    FinetuneConfig,
    Sets,
    checkpoints_directory,
    model_directory,
    read_sets,
)
from finetune.devices import Counted, resolve_precision, to_device
from finetune.evaluate import outputs
from finetune.models import load_model
from finetune.parallel.trainer import Trainer, build_trainer, numel
from finetune.robust.augment import Noise
from finetune.robust.objectives import objective_of
from finetune.tasks import task_of
from finetune.tasks.base import LOWER_IS_BETTER, Encoded, Task
from finetune.tokenizer import TextTokenizer
from finetune.transfer.advice import Decision, decide, decided
from finetune.transfer.layers import parameter_groups, prepare
from model.heads import Model
from model.hf import read_config
from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo, verify
from runtime.checkpoint.format import MANIFEST
from runtime.checkpoint.reader import TrainingState, understood
from runtime.checkpoint.saver import Saver
from runtime.checks import check_schedule
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.metrics import Clock, MetricsLog, device_name
from runtime.progress import Progress
from runtime.run_directory import describe_run, newest_checkpoint, prepare_run_directory
from runtime.seed import mix
from runtime.sinks import Histogram, open_sinks

_RESULTS = ("report.json", "report.html", "report.md", "predictions.jsonl")


@dataclass
class Session:
    """A run in memory: what the loop reads and what a checkpoint stores."""

    config: FinetuneConfig
    ranks: Ranks
    task: Task
    sets: Sets
    train: Encoded
    dev: Encoded
    plan: Plan
    tokenizer: TextTokenizer
    replicas: Trainer
    progress: Progress
    saver: Saver
    beat: Callable[[], None]  # a sign of life for the watchdog
    decision: Decision  # how much of the checkpoint is reused
    log: MetricsLog | None = None  # on the main rank
    step: int = 0
    tokens_seen: int = 0
    best_score: float = field(default=float("-inf"))
    best_step: int = 0
    without_best: int = 0  # evaluations since the best one
    saved_step: int = -1  # of the newest whole checkpoint

    @property
    def best(self) -> Path:
        """Where the best model lies."""
        return self.config.run_dir / BEST

    @property
    def net(self) -> Model:
        """The model that is scored."""
        return self.replicas.module

    @property
    def forward(self) -> Any:
        """What computes a pass of it; under ZeRO all ranks must call it alike."""
        return self.replicas.forward

    @property
    def purpose(self) -> checkpoint.Purpose:
        """What the model is for, as it is written beside it."""
        return checkpoint.Purpose(self.task, self.sets.labels)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.total_steps(len(self.train))

    @property
    def is_finished(self) -> bool:
        """Whether every step is done, or patience is at its end."""
        return self.step >= self.total_steps or self.without_best >= self.config.patience > 0

    @cached_property
    def noise(self) -> Noise | None:
        """What changes the training texts, if anything."""
        rates = self.config.robust.augment
        if not rates.is_on():
            return None
        fixed = {*self.tokenizer.special_ids, self.tokenizer.pad_id}
        seed, mask_id = self.config.run.seed, self.tokenizer.mask_id
        return Noise.of(rates, seed, self.train.tokens, fixed, mask_id)

    def micro_batches(self) -> tuple[list[Counted], int]:
        """Make this rank's batches of the coming step, and count what all ranks' have together.

        A rank that has none gets one that counts nothing.
        """
        plan, ranks = self.plan, self.ranks
        # Where every label of a step was cut off, nothing is learned from it.
        total = max(1, self.train.counts(plan.batch(self.step)))
        own = plan.micro_batches(self.step, ranks.rank, ranks.world_size)
        if own:
            return [self._batch(indices) for indices in own], total
        batch, _ = self._batch(plan.batch(self.step)[-1:])
        return [(batch, 0)], total

    def _batch(self, indices: Indices) -> Counted:
        pad_id = self.tokenizer.pad_id
        # Not 0, which is what sets are scored with.
        draw = 1 + mix(self.config.run.seed, self.step)
        arrays = self.train.training_batch(indices, pad_id, draw)
        if self.noise is not None:
            arrays = self.noise.batch(arrays, indices, self.step, pad_id)
        return to_device(arrays, self.ranks.device), self.train.counts(indices)

    def is_evaluation_due(self) -> bool:
        """Whether the dev set is to be scored after the last step."""
        every_steps = self.config.evaluate.every_steps or self.plan.steps_per_epoch
        return self.step % every_steps == 0 or self.step == self.total_steps

    def evaluate(self) -> None:
        """Score the dev set, and publish the model if it is the best so far. Collective."""
        config, metric = self.config, self.config.metric
        batch_size = config.micro_batch_size(self.ranks.world_size)
        found = outputs(
            self.forward,
            self.task,
            self.dev,
            self.ranks,
            batch_size,
            pad_id=self.tokenizer.pad_id,
            beat=self.beat,
        )
        scores = self.task.scores(self.dev, found, self.sets.labels)
        # The best is the greatest, whatever is measured.
        score = -scores[metric] if metric in LOWER_IS_BETTER else scores[metric]
        self.without_best += 1
        if score > self.best_score:
            self.best_score, self.best_step, self.without_best = score, self.step, 0
            parameters = self.gathered()
            dist.together(partial(self._publish, scores[metric], parameters), only_main=True)
        loss = scores.pop("loss", None)
        named = {f"dev_{name}": value for name, value in scores.items()}
        named |= {} if loss is None else {"valid_loss": loss}
        self.record(dev_score=score, **named)
        mark = "  (best so far)" if self.without_best == 0 else ""
        told = "" if loss is None else f", loss {loss:.4f}"
        value = loss if metric == "loss" else scores[metric]
        self.progress.say(f"step {self.step}: dev {metric} {value:.4f}{told}{mark}")

    def gathered(self) -> dict[str, Tensor]:
        """Every parameter on the main rank, in host memory where ZeRO has cut it. Collective."""
        engine = self.replicas.engine
        if engine is None:
            return dict(self.net.named_parameters()) if self.ranks.is_main else {}
        names = engine.parameter_shapes().keys() if self.ranks.is_main else ()
        return {name: p.to("cpu", copy=True) for name, p in engine.full_parameters(names)}

    def _publish(self, value: float, parameters: dict[str, Tensor]) -> None:
        # A run that lost some steps in a crash may have published a better one in them.
        published = checkpoint.best_score(self.best)
        if published is None or self.best_score > published["dev_score"]:
            score = {"step": self.step, "metric": self.config.metric, "value": value}
            checkpoint.publish_best(
                self.best,
                self.net,
                parameters,
                self.tokenizer,
                self.purpose,
                {**score, "dev_score": self.best_score},
            )

    def save(self) -> None:
        """Have a checkpoint of this step written, unless it is there. Collective."""
        if self.saved_step == self.step:
            return
        state = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "best_score": self.best_score if self.best_step else None,
            "best_step": self.best_step,
            "without_best": self.without_best,
            "data": fingerprints(self.train, self.dev),
            "transfer": self.decision.as_json(),
            "config": self.config.model_dump(mode="json"),
            "versions": provenance.versions(),
            "world_size": self.ranks.world_size,
        }
        replicas = self.replicas
        saved = checkpoint.Saved(
            replicas.module, replicas.optimizer, self.tokenizer, self.purpose, self.ranks
        )
        self.saver.save(self.step, replicas.engine or saved, saved, state)
        self.saved_step = self.step

    def record(self, **values: Any) -> None:
        """Write a metrics record of this step (main rank)."""
        if self.log is not None:
            self.log.record(self.step, tokens_seen=self.tokens_seen, **values)

    def record_histograms(self) -> None:
        """Tell the sinks how the values of every parameter are spread. Collective."""
        if self.config.log.has_sinks:
            for name, parameter in self.gathered().items():
                assert self.log is not None  # the main rank alone has gathered any
                self.log.histogram(self.step, f"parameters/{name}", Histogram.of(parameter))


def start(config: FinetuneConfig, ranks: Ranks, beat: Callable[[], None]) -> Session:
    """Build a run, or take up the newest whole checkpoint in its directory. Collective.

    beat: called while the run waits for a save.
    """
    sets, problems = read_sets(config)
    if problems:  # the files changed since they were checked
        raise UserError(f"{problems[0].key}: {problems[0].message}", status=EXIT_BAD_INPUT)
    prepare_run_directory(config.run_dir)
    resumed = newest_checkpoint(config.run_dir / "checkpoints", ranks)
    source = resumed.path if resumed else initial_model(Path(config.model), ranks)
    task = task_of(config.task)
    decision = _decide(config, source, sets, resumed, ranks)
    net, labels, notes = load_model(
        source, task, sets.labels, config, is_resumed=resumed is not None
    )
    tokenizer = TextTokenizer(source, net.config, config.task.max_length)
    net.config = net.config.model_copy(update={"pad_token_id": tokenizer.pad_id})
    sets = sets._replace(labels=labels)
    train, dev = (task.encode(examples, labels, tokenizer) for examples in sets[:2])
    batch = config.batch.global_batch_size, config.micro_batch_size(ranks.world_size)
    total_steps = config.total_steps(len(train))
    for problem in check_schedule(config.schedule, total_steps):
        raise UserError(f"{problem.key}: {problem.message}", status=EXIT_BAD_INPUT)
    plan = Plan(train.lengths, *batch, config.run.seed)
    precision = resolve_precision(config.precision, ranks.device)
    notes += prepare(net, decision.transfer, total_steps, is_resumed=resumed is not None)
    groups = without_decay(parameter_groups(net, config.optim, decision.transfer), net)
    objective = objective_of(config.robust, task.kind, labels, train.labels)
    replicas = build_trainer(net, config, ranks, precision, groups, objective)
    progress = Progress(total_steps, stream=None if ranks.is_main else io.StringIO())
    directory = config.run_dir / "checkpoints"
    saver = Saver(directory, ranks, config.checkpoint, say=progress.say, beat=beat)
    session = Session(
        *(config, ranks, task, sets, train, dev, plan, tokenizer, replicas, progress, saver, beat),
        decision,
    )
    if resumed is not None:
        _restore(session, resumed)
    describe_run(config.run_dir, config)
    dist.together(partial(tidy, session), only_main=True)
    if ranks.is_main:
        session.log = MetricsLog(
            config.run_dir,
            Clock(config.run_dir, ranks.world_size, device_name(ranks.device)),
            resume_step=session.step,
            sinks=open_sinks(config.run_dir, config.run.name, config.log, config),
        )
    for line in [*_introduction(session, precision), *decision.reasons, *notes]:
        progress.say(line)
    # fp32, with two moments; under ZeRO with masters, too.
    saver.look_ahead((12 if replicas.engine is None else 16) * sum(map(numel, net.parameters())))
    if resumed is not None:
        progress.say(f"resumed from {resumed.path}, step {session.step}")
    return session


def _decide(
    config: FinetuneConfig,
    source: Path,
    sets: Sets,
    resumed: CheckpointInfo | None,
    ranks: Ranks,
) -> Decision:
    """How much of the checkpoint a run reuses; a resumed run stays with what it began with."""
    transfer = config.transfer
    if resumed is not None and transfer.strategy == "auto":
        with understood(resumed.path):
            return decided(TrainingState(resumed.path).values["transfer"])
    texts = [example.text for example in sets.train]
    task = config.task
    head = task_of(task).head_of(read_config(source))
    return decide(transfer, source, texts, ranks, max_length=task.max_length, head=head)


def tidy(session: Session) -> None:
    """Put away what an earlier run, or an unfinished publication, left in the directory."""
    checkpoint.recover_best(session.best)
    if session.step == 0 and session.best.exists():
        # Of a run whose checkpoints are gone. Its score must not compete with this run's.
        previous = session.best.with_name(f"{BEST}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        session.best.rename(previous)
    if not session.is_finished:
        for name in _RESULTS:
            (session.config.run_dir / name).unlink(missing_ok=True)


def initial_model(path: Path, ranks: Ranks) -> Path:
    """The model directory to start from; of a run its newest checkpoint that verifies."""
    directory = model_directory(path)
    if directory in (path, path / BEST):
        dist.together(partial(_verified, directory), only_main=True)
        return directory
    found = newest_checkpoint(checkpoints_directory(path), ranks)
    assert found is not None  # model_directory saw one
    return found.path


def _verified(directory: Path) -> None:
    problems = verify(directory) if (directory / MANIFEST).is_file() else []
    if problems:
        raise UserError(problems[0])


def fingerprints(train: Encoded, dev: Encoded) -> dict[str, str]:
    """Hashes of what a run is trained and chosen by, which a resumed one must have too."""
    return {"train": train.fingerprint(), "dev": dev.fingerprint()}


def _restore(session: Session, resumed: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step: weights, moments, data order, counters."""
    session.saver.trust(resumed)
    state = TrainingState(resumed.path)
    with understood(resumed.path):
        stored = state.values["data"]
        for name, value in fingerprints(session.train, session.dev).items():
            if stored[name] != value:
                raise UserError(
                    f"data.{name}: its texts or labels are not those that {resumed.path} was "
                    "trained with; restore them, or choose another run.dir",
                    status=EXIT_BAD_INPUT,
                )
        session.step = session.saved_step = state.values["step"]
        session.tokens_seen = state.values["tokens_seen"]
        session.without_best = operator.index(state.values["without_best"])
        session.best_step = operator.index(state.values["best_step"])
        if session.best_step:
            session.best_score = float(state.values["best_score"])
    session.replicas.load(state)


def _introduction(session: Session, precision: str) -> list[str]:
    config, ranks, sets = session.config, session.ranks, session.sets
    adapter = attached(session.net)  # knows how many numbers a quantised checkpoint packs
    parameters = session.replicas.module.parameters()
    size = (sum(map(numel, parameters)) if adapter is None else adapter.whole) / 1e6
    classes = f"; {len(sets.labels)} classes" if sets.labels else ""
    lines = [
        f"{session.replicas.module.config.family} model, {size:.2f} M parameters; {precision}, "
        f"{config.parallel}, {ranks.world_size} × {device_name(ranks.device)}",
        f"{config.task.kind}: {len(sets.train):,} examples to train on, {len(sets.dev):,} for "
        f"dev, {len(sets.test or ()):,} for test{classes}; "
        f"{session.total_steps:,} steps, {session.plan.steps_per_epoch:,} per epoch; run directory "
        f"{config.run_dir}",
    ]
    lines += [
        f"warning: {data.truncated:,} of {len(data.examples):,} {name} texts are longer than "
        f"task.max_length = {session.tokenizer.max_length} and were cut"
        for name, data in (("train", session.train), ("dev", session.dev))
        if data.truncated
    ]
    return lines
