"""A run of several tasks, built from its config or resumed from its last checkpoint."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune import checkpoint
from finetune.batches import Plan
from finetune.config import FinetuneConfig, read_sets
from finetune.devices import Counted, Replicas, resolve_precision
from finetune.models import load_model
from finetune.multitask.config import MultitaskConfig, names_with_shares, total_steps
from finetune.multitask.joint import Joint, Mixture, Turns
from finetune.robust.objectives import objective_of
from finetune.session import Session, fingerprints, initial_model, tidy
from finetune.tasks import task_of
from finetune.tokenizer import TextTokenizer
from finetune.transfer.advice import Decision
from finetune.transfer.layers import parameter_groups, prepare
from model.heads import Model
from model.hf.shards import Create
from runtime import dist, provenance
from runtime.checkpoint import CheckpointInfo
from runtime.checkpoint.reader import TrainingState, understood
from runtime.checkpoint.saver import Saver
from runtime.checks import check_schedule
from runtime.dist import Ranks
from runtime.errors import EXIT_BAD_INPUT, UserError
from runtime.metrics import Clock, MetricsLog, device_name
from runtime.progress import Progress
from runtime.run_directory import describe_run, newest_checkpoint, prepare_run_directory
from runtime.sinks import Histogram, open_sinks


@dataclass
class Member(Session):
    """One of the tasks: what a run of it alone would have, with the trunk of all.

    `step` counts the steps of all tasks.
    """

    name: str = ""
    own_step: int = 0  # steps of this task before the coming one
    whole: "JointSession | None" = None  # the run that this is a part of

    @property
    def net(self) -> Model:
        """This task's model."""
        joint = self.replicas.module
        assert isinstance(joint, Joint)
        return joint.part(self.name)

    @property
    def forward(self) -> Model:
        """What computes a pass of it."""
        return self.net

    @property
    def is_finished(self) -> bool:
        """Whether the run is."""
        return self.whole is not None and self.whole.is_finished

    def record(self, **values: Any) -> None:
        """Write a metrics record of the run, each key under the task's name."""
        if self.whole is not None:
            self.whole.record(**{f"{self.name}_{key}": value for key, value in values.items()})

    def micro_batches(self) -> tuple[list[Counted], int]:
        """Make this rank's batches of the task's own next step; see `Session`."""
        step, self.step = self.step, self.own_step
        try:
            return super().micro_batches()
        finally:
            self.step = step


@dataclass
class JointSession:
    """A run in memory: what the loop reads and what a checkpoint stores."""

    config: MultitaskConfig
    ranks: Ranks
    members: dict[str, Member]
    plan: Mixture
    turns: Turns
    replicas: Replicas
    progress: Progress
    saver: Saver
    log: MetricsLog | None = None  # on the main rank
    step: int = 0
    tokens_seen: int = 0
    saved_step: int = -1
    total_steps: int = field(default=0)

    @property
    def is_finished(self) -> bool:
        """Whether every step is done, or patience is at its end for every task."""
        patience = self.config.patience
        idle = min(member.without_best for member in self.members.values())
        return self.step >= self.total_steps or idle >= patience > 0

    def micro_batches(self) -> tuple[list[Counted], int]:
        """Make this rank's batches of the coming step, all of one task; see `Session`."""
        name, own_step = self.plan.turn(self.step)
        self.turns.part = name
        member = self.members[name]
        member.own_step = own_step
        return member.micro_batches()

    def is_evaluation_due(self) -> bool:
        """Whether the dev sets are to be scored after the last step."""
        every_steps = self.config.every_steps or self.plan.steps_per_epoch
        return self.step % every_steps == 0 or self.step == self.total_steps

    def evaluate(self) -> None:
        """Score every dev set, and publish each model that is the best so far. Collective."""
        for name, member in self.members.items():
            member.step = self.step
            self.progress.say(f"{name}:")
            member.evaluate()

    def save(self) -> None:
        """Have a checkpoint of this step written, unless it is there. Collective."""
        if self.saved_step == self.step:
            return
        state = {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "tasks": {
                name: {
                    "best_score": member.best_score if member.best_step else None,
                    "best_step": member.best_step,
                    "without_best": member.without_best,
                    "data": fingerprints(member.train, member.dev),
                }
                for name, member in self.members.items()
            },
            "config": self.config.model_dump(mode="json"),
            "versions": provenance.versions(),
            "world_size": self.ranks.world_size,
        }
        first = next(iter(self.members.values()))
        replicas = self.replicas
        trained = checkpoint.Saved(
            replicas.module, replicas.optimizer, first.tokenizer, first.purpose, self.ranks
        )
        self.saver.save(self.step, trained, Directories(self.members, trained), state)
        self.saved_step = self.step

    def record(self, **values: Any) -> None:
        """Write a metrics record of this step (main rank)."""
        if self.log is not None:
            self.log.record(self.step, tokens_seen=self.tokens_seen, **values)

    def record_histograms(self) -> None:
        """Tell the sinks how the values of every parameter are spread (main rank)."""
        if self.log is not None and self.config.log.has_sinks:
            for name, parameter in self.replicas.module.named_parameters():
                self.log.histogram(self.step, f"parameters/{name}", Histogram.of(parameter))


@dataclass
class Directories:
    """The model files of a checkpoint: a Hugging Face directory a task."""

    members: Mapping[str, Member]
    trained: checkpoint.Saved

    def wanted(self) -> Collection[str]:
        """The parameters that this rank writes."""
        return self.trained.wanted()

    def write(
        self, directory: Path, parameters: Mapping[str, torch.Tensor], create: Create
    ) -> None:
        """Write each task's model, the trunk included."""
        joint = self.trained.net
        assert isinstance(joint, Joint)
        for name, member in self.members.items() if self.trained.ranks.is_main else ():
            (directory / name).mkdir()
            own = {there: parameters[here] for there, here in joint.names(name).items()}
            checkpoint.write_model(
                *(member.net, own, directory / name, member.tokenizer, member.purpose, create)
            )


def start(config: MultitaskConfig, ranks: Ranks, beat: Callable[[], None]) -> JointSession:
    """Build a run, or take up the newest whole checkpoint in its directory. Collective.

    beat: called while the run waits for a save.
    """
    prepare_run_directory(config.run_dir)
    resumed = newest_checkpoint(config.run_dir / "checkpoints", ranks)
    made = {
        name: _load(member, ranks, None if resumed is None else resumed.path / name)
        for name, member in config.members.items()
    }
    joint = Joint({name: parts.net for name, parts in made.items()})
    sizes = [len(parts.train) for parts in made.values()]
    total = total_steps(config, sizes)
    for problem in check_schedule(config.schedule, total):
        raise UserError(f"{problem.key}: {problem.message}", status=EXIT_BAD_INPUT)
    notes = [f"{name}: {note}" for name, parts in made.items() for note in parts.notes]
    notes += prepare(joint, config.transfer, total, is_resumed=resumed is not None)
    turns = Turns({name: parts.objective for name, parts in made.items()})
    precision = resolve_precision(config.precision, ranks.device)
    groups = parameter_groups(joint, config.optim, config.transfer)
    replicas = Replicas(joint, config.optim, ranks, precision, groups=groups, objective=turns)
    progress = Progress(total, stream=None if ranks.is_main else io.StringIO())
    saver = Saver(
        config.run_dir / "checkpoints", ranks, config.checkpoint, say=progress.say, beat=beat
    )
    members = {
        name: Member(
            *(parts.config, ranks, parts.task, parts.sets, parts.train, parts.dev, parts.plan),
            *(parts.tokenizer, replicas, progress, saver, beat, Decision(config.transfer)),
            name=name,
        )
        for name, parts in made.items()
    }
    shares = dict(names_with_shares(config, sizes))
    plans = {name: parts.plan for name, parts in made.items()}
    mixture = Mixture(list(shares), list(shares.values()), plans, config.run.seed)
    session = JointSession(
        config, ranks, members, mixture, turns, replicas, progress, saver, total_steps=total
    )
    if resumed is not None:
        _restore(session, resumed)
    _open(session, precision, shares, notes)
    if resumed is not None:
        progress.say(f"resumed from {resumed.path}, step {session.step}")
    return session


@dataclass
class _Parts:
    """What a task brings along."""

    config: FinetuneConfig
    net: Model
    task: Any
    sets: Any
    train: Any
    dev: Any
    plan: Plan
    tokenizer: TextTokenizer
    objective: Any
    notes: list[str]


def _load(config: FinetuneConfig, ranks: Ranks, resumed: Path | None) -> _Parts:
    """Read a task's data, and the checkpoint with its head. Collective."""
    sets, problems = read_sets(config)
    if problems:  # the files changed since they were checked
        raise UserError(f"{problems[0].key}: {problems[0].message}", status=EXIT_BAD_INPUT)
    source = resumed or initial_model(Path(config.model), ranks)
    task = task_of(config.task)
    net, labels, notes = load_model(
        source, task, sets.labels, config, is_resumed=resumed is not None
    )
    tokenizer = TextTokenizer(source, net.config, config.task.max_length)
    net.config = net.config.model_copy(update={"pad_token_id": tokenizer.pad_id})
    sets = sets._replace(labels=labels)
    train, dev = (task.encode(examples, labels, tokenizer) for examples in sets[:2])
    sizes = config.batch.global_batch_size, config.micro_batch_size(ranks.world_size)
    plan = Plan(train.lengths, *sizes, config.run.seed)
    objective = objective_of(config.robust, task.kind, labels, train.labels)
    return _Parts(config, net, task, sets, train, dev, plan, tokenizer, objective, notes)


def _restore(session: JointSession, resumed: CheckpointInfo) -> None:
    """Continue exactly after the checkpoint's step."""
    session.saver.trust(resumed)
    state = TrainingState(resumed.path)
    with understood(resumed.path):
        for name, member in session.members.items():
            stored = state.values["tasks"][name]
            if stored["data"] != fingerprints(member.train, member.dev):
                raise UserError(
                    f"{name}: its texts or labels are not those that {resumed.path} was trained "
                    "with; restore them, or choose another run.dir",
                    status=EXIT_BAD_INPUT,
                )
            member.without_best = int(stored["without_best"])
            member.best_step = int(stored["best_step"])
            if member.best_step:
                member.best_score = float(stored["best_score"])
        session.step = session.saved_step = state.values["step"]
        session.tokens_seen = state.values["tokens_seen"]
    checkpoint.load_optimizer(session.replicas.module, session.replicas.optimizer, state)


def _open(
    session: JointSession, precision: str, shares: Mapping[str, float], notes: list[str]
) -> None:
    """Make the directories ready, open the logs, and say what will be trained. Collective."""
    config, ranks, members = session.config, session.ranks, session.members
    describe_run(config.run_dir, config)
    for member in members.values():
        member.step, member.whole = session.step, session
        dist.together(partial(_tidy, member), only_main=True)
    if ranks.is_main:
        session.log = MetricsLog(
            config.run_dir,
            Clock(config.run_dir, ranks.world_size, device_name(ranks.device)),
            resume_step=session.step,
            sinks=open_sinks(config.run_dir, config.run.name, config.log, config),
        )
    size = sum(p.numel() for p in session.replicas.module.parameters()) / 1e6
    say = session.progress.say
    say(f"{len(members)} tasks over one trunk, {size:.2f} M parameters; {precision}, "
        f"{ranks.world_size} × {device_name(ranks.device)}; {session.total_steps:,} steps; "
        f"run directory {config.run_dir}")  # fmt: skip
    for name, member in members.items():
        say(
            f"{name}: {member.task.kind}, {len(member.sets.train):,} examples to train on, "
            f"{len(member.sets.dev):,} for dev; {shares[name]:.1%} of the steps"
        )
    for line in notes:
        say(line)
    session.saver.look_ahead(round(12e6 * size))


def _tidy(member: Member) -> None:
    member.config.run_dir.mkdir(exist_ok=True)
    tidy(member)
