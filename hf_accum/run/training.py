"""A run from its start to its end: what stands around the loop of a recipe, which stays in the recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from hf_accum.accumulation.example import Example
from hf_accum.accumulation.nonfinite import GradientGuard
from hf_accum.accumulation.splitting import Cutter
from hf_accum.accumulation.window import Window
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.pipeline import Pipeline
from hf_accum.data.source import Row
from hf_accum.data.split import SplitData
from hf_accum.data.stream import WindowStream
from hf_accum.distributed.collectives import broadcast_weights, on_all_ranks
from hf_accum.distributed.launch import start_accelerator
from hf_accum.distributed.ranks import Ranks, ranks_of
from hf_accum.files import write_json
from hf_accum.models.optimizer import build_optimizer
from hf_accum.models.saving import Processor
from hf_accum.models.trainable import Trainable
from hf_accum.run.checkpoint import BestCheckpoint, Checkpoints
from hf_accum.run.folder import claim_folder, start_folder
from hf_accum.run.log import RunLog
from hf_accum.run.resume import Resumed, RunState, facts_of_run, find_resume, stream_state
from hf_accum.run.schedule import count_steps
from hf_accum.run.signals import StopRequest
from hf_accum.run.summary import describe_run
from hf_accum.seeding import use_deterministic_algorithms
from hf_accum.tuner.plan import what_would_fit
from hf_accum.tuner.run_capacity import cutter_of, find_capacity, keep_costs, tuning_json
from hf_accum.tuner.search import Tuning
from hf_accum.tuner.workload import Workload

C = TypeVar("C", bound=RecipeConfig)
T = TypeVar("T")
_EVALUATED_AT_ONCE = 256  # examples of each rank: the window of an evaluation


class Task(Protocol[T]):
    """What a recipe makes of rows, and how it judges a model."""

    def prepare(self, row: Row) -> T | None:
        """What is kept of a row; None leaves it out.

        Raises:
            BadRow: if it cannot be used.
        """
        ...

    def encode(self, rows: Sequence[tuple[str, T]]) -> list[Example]:
        """Examples of (id, prepared row)s."""
        ...

    def collate(self, examples: Sequence[Example], length: int) -> Any:
        """A batch on the CPU, padded to a length."""
        ...

    def evaluate(
        self, model: nn.Module, held_out: WindowStream[T], *, ranks: Ranks, cutter: Cutter
    ) -> dict[str, Any]:
        """The figures of a model on all examples of a stream, each used once. A collective."""
        ...


class StartedRun:
    """A run that has its ranks and its folder, and no data or model yet.

    What is wrong with the folder, or with how the processes were launched, is said here.

    Raises:
        ValueError: if it cannot have that folder, or was launched in a way that would train something else.
    """

    def __init__(self, config: RecipeConfig) -> None:
        self.stop = StopRequest(config.max_minutes)
        if config.full_determinism:
            use_deterministic_algorithms()
        self.folder = Path(config.output_dir).expanduser().resolve()
        self.accelerator = start_accelerator(
            trackers=config.trackers, logging_dir=self.folder, timeout_minutes=config.rank_timeout_minutes
        )
        self.precision = self.accelerator.mixed_precision
        self.device = self.accelerator.device
        self.ranks = ranks_of(self.accelerator, config.rank_timeout_minutes)
        self.claim = claim_folder(self.folder, self.ranks)
        self.facts: Mapping[str, Any] = {}
        self.resumed = Resumed(None)

    def find_resume(self, config: RecipeConfig, data: SplitData) -> None:
        """Look for the checkpoint to go on from, before the model is loaded. A collective.

        Raises:
            ValueError: if `--resume` means one that is damaged, or of a run that would go another way.
        """
        size = {"num_train": data.num_train, "data_digest": data.digest}
        self.facts = facts_of_run(config, self.ranks, self.precision, **size)
        self.resumed = find_resume(self.folder, config, self.facts, self.ranks)


class Training:
    """What the loop of a recipe needs, ready; and all that comes before, beside and after it.

    Use it as a context manager. Take the `windows`, train on each, tell it of each by `step_done`, and `finish`.
    `model` is what the forward is to be called on, in accelerate's precision; it is not in DistributedDataParallel:
    `accumulate` sums the gradients, and a copy of them would stand in its buckets.

    `work` is what is computed with the model, on examples that are made up; `workload` is the recipe's own function,
    which builds that from flags without weights, to say what would fit where nothing does. `draw` draws what is
    random in an example, in a pass over the data; None: in a held-out one.

    Raises:
        ValueError: if nothing fits, or the checkpoint, the held-out data or the folder cannot be used.
    """

    def __init__(
        self,
        run: StartedRun,
        config: C,
        data: SplitData,
        task: Task[Any],
        trainable: Trainable,
        processor: Processor,
        work: Workload,
        workload: Callable[[C, str], Workload],
        draw: Callable[[Example, int | None], Example] | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._task = task
        self._data = data
        self._draw = draw
        accelerator, ranks = run.accelerator, run.ranks
        self._tunings = find_capacity(
            config,
            work,
            ranks,
            run.device,
            checkpoint=trainable.checkpoint,
            advise=lambda budget: what_would_fit(lambda changed: workload(changed, run.precision), config, budget),
        )
        self._tuning = self._tunings[ranks.index]
        self.cutter = cutter_of(self._tuning, run.device, learns=not config.full_determinism)
        self.num_steps = count_steps(data.num_train, config.effective_batch_size, config.num_epochs, config.max_steps)
        self._plain_model = trainable.model
        optimizer = build_optimizer(trainable.model, config.learning_rate, config.weight_decay)
        from transformers import get_scheduler

        warmup = round(config.warmup_ratio * self.num_steps)
        self.scheduler = get_scheduler(config.lr_scheduler, optimizer, warmup, self.num_steps)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.model: nn.Module = accelerator.prepare_model(trainable.model, evaluation_mode=True)
        self._best = BestCheckpoint(config.best_metric)
        trained = (trainable.model, self.optimizer, self.scheduler, accelerator.scaler)
        self._state = RunState(
            run.facts, ranks, *trained, self.cutter, self._best, self._tuning.device, self._tuning.limit_bytes
        )
        self._state.restore(run.resumed)
        broadcast_weights(trainable.model, accelerator)

        train_stream = self._stream(
            held_out=False,
            effective_batch_size=config.effective_batch_size,
            num_epochs=config.num_epochs,
            shuffle_block_size=config.shuffle_block_size,
            balance=self.cutter.speed_at_step if config.balance_ranks else None,
            stopping=run.stop.is_asked,
            start=stream_state(run.resumed, ranks),
        )
        self._pipeline = Pipeline(train_stream, self.cutter, task.collate, run.device, keeps_failure=True)
        self._progress = train_stream.start
        self._step = run.resumed.step
        in_order: dict[str, Any] = {"shuffle_block_size": 1, "skip_weightless": False}
        self._held_out = self._stream(
            held_out=True, effective_batch_size=_EVALUATED_AT_ONCE * ranks.count, **in_order
        )
        self._held_out.first_example()  # there has to be one

        earlier = start_folder(run.folder, config, ranks, run.resumed.loaded, run.claim)
        self._write_tuning(self._tunings)
        unit = self._tuning.lengths.unit
        how_often = (self.num_steps, config.log_every, run.resumed.step)
        self._log = RunLog(accelerator, ranks, run.folder, *how_often, unit=unit)
        self._description = describe_run(
            config,
            num_train=data.num_train,
            num_held_out=data.num_held_out,
            bad_rows=data.bad_rows,
            notes=data.notes,
            num_steps=self.num_steps,
            model=trainable.model,
            new_modules=trainable.new_modules,
            accelerator=accelerator,
            tunings=self._tunings,
            earlier=earlier,
            resumed=run.resumed,
        )
        self._checkpoints = Checkpoints(
            run.folder, trainable.model, processor, ranks, config.keep_checkpoints, self._log.say
        )
        self.guard = GradientGuard(
            ranks,
            run.folder,
            self._log.say,
            has_scaler=accelerator.scaler is not None,
            num_skips=run.resumed.num_skips,
            max_skips=config.max_nonfinite_skips if config.on_nonfinite == "skip" else 0,
        )
        self._contexts = ExitStack()

    def __enter__(self) -> "Training":
        """Listen to signals, start the display, and say what the run will do."""
        # The display is closed first: a signal meanwhile, as torchrun's where another rank has failed, would end this
        # process by default, before it has said what it fails of.
        self._contexts.enter_context(self._run.stop)
        self._contexts.enter_context(self._log)
        self._contexts.callback(self.guard.close)
        self._log.start(self._config, self._description)
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop the display, and listen to signals no more."""
        self._contexts.__exit__(*error)

    @property
    def windows(self) -> Iterator[Window]:
        """The examples of one optimizer step after the other, until the run is through or told to stop."""
        if self._is_through:
            return
        for window in self._pipeline:
            yield window
            if self._is_through:
                return

    def step_done(self, window: Window, grad_norm: Tensor | float | None, learning_rate: Tensor | float) -> None:
        """Take note of a window that went through; evaluate and save where that is due. A collective."""
        config = self._config
        self._step, self._progress = window.step, window.state
        self._log.step(window, grad_norm, learning_rate)
        is_due = bool(config.save_every) and self._step % config.save_every == 0
        if config.eval_every and self._step % config.eval_every == 0 and self._step < self.num_steps:
            self._log.flush()  # what comes now is no part of a step
            figures = self._evaluate()
            self._log.evaluation(self._step, figures)
            is_due = self._best.update(self._step, figures) or is_due
        if is_due and self._step < self.num_steps:
            self._log.flush()
            self._save()

    def finish(self) -> Mapping[str, Any]:
        """Save the result and evaluate it; of a run that ends early a checkpoint, and raise what ended it.

        Raises:
            Stopped: if it was told to stop.
            NotFinite: if the guard gave up.
            ValueError: if data could not be read, or the result not be written.
        """
        run, ranks, checkpoints = self._run, self._run.ranks, self._checkpoints
        self._log.flush()
        early = self.guard.gave_up or self._pipeline.failure or run.stop.agreed(ranks)
        if early:
            checkpoints.wait()
            if self._step:
                self._save()
            self._log.end_early(self._step, early, on_all_ranks(ranks, checkpoints.wait)[0])
            run.accelerator.end_training()
            raise early
        checkpoints.wait(hurry=False)
        exported = on_all_ranks(ranks, checkpoints.export)[0]  # before anything else can fail
        step, best, figures = self._step, self._best, self._evaluate()
        self._log.evaluation(step, figures)
        is_best = best.update(step, figures) or best.step is None
        if not is_best and on_all_ranks(ranks, lambda: checkpoints.restore_weights(best.step or 0))[0]:
            self._log.say(f"by {best.metric} the checkpoint of step {best.step} is the best: it is the result")
            broadcast_weights(self._plain_model, run.accelerator)
            on_all_ranks(ranks, checkpoints.export)
            step, figures = best.step or step, self._evaluate()
        self._log.finish(step, figures, self._pipeline, exported)
        self._write_tuning(keep_costs(self._tuning, self.cutter, ranks))
        self._contexts.close()
        run.accelerator.end_training()
        return figures

    @property
    def _is_through(self) -> bool:
        return self._step >= self.num_steps or self._best.is_beaten_for(self._config.early_stopping_patience)

    def _save(self) -> None:
        self._state.save(self._progress, self._checkpoints, self.guard.num_skips)

    def _write_tuning(self, tunings: Sequence[Tuning]) -> None:
        if self._run.ranks.index == 0:
            write_json(self._run.folder / "tuning.json", tuning_json(tunings))

    def _evaluate(self) -> Mapping[str, Any]:
        return self._task.evaluate(self._plain_model, self._held_out, ranks=self._run.ranks, cutter=self.cutter)

    def _stream(self, held_out: bool, **how: Any) -> WindowStream[Any]:
        data, task, config, draw = self._data, self._task, self._config, self._draw
        return WindowStream(
            data.eval_source if held_out else data.source,
            lambda row: task.prepare(row) if data.is_held_out(row, held_out) == held_out else None,
            task.encode,
            ranks=self._run.ranks,
            seed=config.seed,
            split=config.stream_split,
            on_bad_row=config.on_bad_row,
            draw=None if draw is None else lambda example, epoch: draw(example, None if held_out else epoch),
            **how,
        )
