"""A run from its start to its end: what stands around the loop of a recipe, which stays in the recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from hf_accum.accumulation.accumulate import accumulate
from hf_accum.accumulation.example import Example
from hf_accum.accumulation.execution import WindowExecution
from hf_accum.accumulation.nonfinite import NonFiniteCheck
from hf_accum.accumulation.part_cache import PartCache
from hf_accum.config.recipe import RecipeConfig
from hf_accum.data.pipeline import Pipeline
from hf_accum.data.split import SplitData
from hf_accum.device.accelerator import begin_counting, reserved_and_retries
from hf_accum.distributed.collectives import broadcast_weights, on_all_ranks
from hf_accum.distributed.launch import end_accelerator
from hf_accum.distributed.telling import told_if_long
from hf_accum.evaluation.run_over import LeftEarly
from hf_accum.files import write_json
from hf_accum.models.forward_failure import naming_forward_failure
from hf_accum.models.offload import check_offload
from hf_accum.models.optimizer import build_optimizer, check_optimizer, make_state
from hf_accum.models.saving import Processor
from hf_accum.models.spec import ModelSpec
from hf_accum.models.trainable import load_trainable
from hf_accum.run.checkpoint import BestCheckpoint, Checkpoints
from hf_accum.run.evaluation import Evaluation
from hf_accum.run.facts import write_facts
from hf_accum.run.folder import start_folder
from hf_accum.run.lengths import notes_of_lengths
from hf_accum.run.log import RunLog
from hf_accum.run.preview import show_preview
from hf_accum.run.resume import RunState, facts_of_run, find_resume
from hf_accum.run.schedule import build_scheduler, count_steps
from hf_accum.run.signals import StopRequest
from hf_accum.run.start import StartedRun
from hf_accum.run.start_check import refuse_cut_dependence
from hf_accum.run.summary import describe_run
from hf_accum.run.training_stream import training_stream
from hf_accum.run.usage import usage_of
from hf_accum.tasks.task import PoolsParts, Task
from hf_accum.tuner.plan import what_would_fit
from hf_accum.tuner.run_capacity import cutter_of, find_run_capacity, keep_costs, tuning_json
from hf_accum.tuner.tuning import Tuning
from hf_accum.tuner.workload import workload_of


class Training:
    """What the loop of a recipe needs, ready; and all that comes before, beside and after it.

    Use it as a context manager. Take the `windows`, train on each, tell it of each by `step_done`, and `finish`.
    `model` is what the forward is to be called on, in accelerate's precision; it is not in DistributedDataParallel:
    `accumulate` sums the gradients, and a copy of them would stand in its buckets.

    `spec` says which model is loaded, `processor` is its tokenizer or image processor, saved with the result. `draw`
    draws what is random in an example, in a pass over the data; None: in a held-out one.

    Raises:
        Previewed: if that is all that was asked for.
        UserError: if the model does not load, or the checkpoint, the held-out data or the folder cannot be used.
        OutOfMemory: if nothing fits.
    """

    def __init__(
        self,
        *,
        run: StartedRun,
        config: RecipeConfig,
        data: SplitData,
        task: Task[Any],
        spec: ModelSpec,
        processor: Processor,
        draw: Callable[[Example, int | None], Example] | None = None,
    ) -> None:
        self._run, self._config, self._task = run, config, task
        self.accelerator, ranks = run.accelerator, run.ranks
        if config.preview:
            show_preview(run, config, data, task, draw)
        check_optimizer(config.optimizer, run.device)
        if config.activation_offload:
            check_offload(run.device)
        facts = facts_of_run(config, ranks, run.precision, num_train=data.num_train, data_digest=data.digest)
        self.resumed = find_resume(run.folder, config, facts, ranks)  # before the weights are loaded

        if run.earlier is not None:
            spec = spec.below_result()
        with told_if_long(ranks, "loading the weights"):
            trainable = load_trainable(spec, processor, config, precision=run.precision, device=run.device)
        workload = workload_of(trainable.model, task, config, run.precision)
        if self.resumed.leaves_out_unused_adapters:
            workload.leave_out_unused_adapters(config.lora, run.device)
        if run.earlier is not None:
            run.notes += run.earlier.put_into(trainable.model, config, spec)
        with naming_forward_failure(trainable.model, config, run.precision, workload.again(run.device)):
            self._tunings = find_run_capacity(
                config,
                workload,
                ranks,
                run.device,
                checkpoint=trainable.checkpoint,
                advise=lambda budget: what_would_fit(run.plan, config, budget),
            )
        self._tuning = self._tunings[ranks.index]
        self.capacity = cutter_of(self._tuning, run.device, learns=not config.full_determinism)
        windows = training_stream(run, config, data, task, draw, self.capacity)
        run.notes += refuse_cut_dependence(
            config, workload, task, windows, draw, self.capacity, ranks, run.device
        )  # before anything is written
        run.notes += notes_of_lengths(data, task, config.max_length)

        num_in_passes = data.num_in_passes(config.num_epochs)
        self.num_steps = count_steps(num_in_passes, config.effective_batch_size, config.num_epochs, config.max_steps)
        self.plain_model = trainable.model
        optimizer = build_optimizer(trainable.model, config)
        self.scheduler = build_scheduler(optimizer, config, self.num_steps)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.model: nn.Module = self.accelerator.prepare_model(trainable.model, evaluation_mode=True)

        self._windows = Pipeline(windows, self.capacity, task.collate, run.device, keeps_failure=True)
        with told_if_long(ranks, "reading which examples to evaluate on"):
            self._evaluation = Evaluation(run, config, data, task, draw)

        self._log = RunLog(
            self.accelerator,
            ranks,
            run.folder,
            self.num_steps,
            config.log_every,
            self.resumed.step,
            unit=task.lengths.unit,
            cut_by=task.lengths.cut_by,
        )
        self.nonfinite = NonFiniteCheck(
            ranks,
            run.folder,
            self._log.say,
            scaler=self.accelerator.scaler,
            max_skips=config.max_nonfinite_skips if config.on_nonfinite == "skip" else 0,
        )
        self._best = BestCheckpoint(config.best_metric)
        self._state = RunState(
            facts,
            ranks,
            model=trainable.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.accelerator.scaler,
            windows=self._windows,
            cutter=self.capacity,
            nonfinite=self.nonfinite,
            best=self._best,
            device=self._tuning.device,
            limit_bytes=self._tuning.limit_bytes,
            leaves_out_unused_adapters=self.resumed.leaves_out_unused_adapters,
        )
        self._state.restore(self.resumed)
        broadcast_weights(trainable.model, self.accelerator)
        self._step = self.resumed.step
        self._learning_rate = 0.0
        begin_counting(run.device)
        if run.device.type != "cpu":
            make_state(optimizer)
        self._num_retries = (reserved_and_retries(run.device) or (0, 0))[1]  # of the tuner's own search
        self._said_retries = False

        earlier = start_folder(run.folder, config, ranks, self.resumed.loaded, run.claim)
        self._write_tuning(self._tunings)
        write_facts(run, config, data, trainable.model, self.num_steps)
        self._checkpoints = Checkpoints(
            run.folder,
            trainable.model,
            processor,
            ranks,
            config.keep_checkpoints,
            self._log.say,
            usage_of(config, task, spec),
        )
        self._description = describe_run(
            config,
            data,
            trainable=trainable,
            num_steps=self.num_steps,
            accelerator=self.accelerator,
            tunings=self._tunings,
            earlier=earlier,
            resumed=self.resumed,
        )
        self._contexts = ExitStack()

    def __enter__(self) -> "Training":
        """Start the trackers, say what the run will do, listen to signals, start the display."""
        self._log.start(self._config, self._description)  # or a tracker does not start
        # The display is closed first: a signal meanwhile, as torchrun's where another rank has failed, would end this
        # process by default, before it has said what it fails of.
        self._contexts.enter_context(self._run.stop)
        self._contexts.enter_context(self._log)
        self._contexts.callback(self.nonfinite.close)
        for note in self._run.notes:
            self._log.say(note)
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop the display, listen to signals no more, and leave the folder to others."""
        self._contexts.__exit__(*error)
        self._run.claim.release()

    @property
    def windows(self) -> Iterator[WindowExecution]:
        """The examples of one optimizer step after the other, until the run is through or told to stop."""
        task = self._task
        if self._is_through:
            return
        if self._state.owes_evaluation:
            is_best = self._evaluate_between()
            if self._state.owes_evaluation:
                return
            if is_best:
                self._save()
        for window in self._windows:
            self._learning_rate = self.scheduler.get_last_lr()[0]
            if isinstance(task, PoolsParts):
                examples, accumulating = window.window.examples, partial(accumulate, self.accelerator, self.model)
                window.rehearsal = PartCache(accumulating, self.model, examples, task.outputs, task.pooled_loss)
            yield window
            if self._is_through or self.nonfinite.gave_up or self._state.owes_evaluation:
                return

    def step_done(self, window: WindowExecution, grad_norm: Tensor | float | None) -> None:
        """Take note of a window that went through; evaluate and save where that is due. A collective."""
        if self.nonfinite.gave_up:
            return  # the run goes on before this window, if it does
        config = self._config
        self._step = window.window.step
        self._run.stop.window_done()
        allocator = reserved_and_retries(self._run.device)
        self._log.step(window, grad_norm, self._learning_rate, allocator)
        if allocator is not None:
            self._watch(allocator[1])
        is_due = bool(config.save_every) and self._step % config.save_every == 0
        if config.eval_every and self._step % config.eval_every == 0 and self._step < self.num_steps:
            if self._run.stop.is_asked_of_any(self._run.ranks):
                self._state.owes_evaluation = True  # the run ends here, and begins with it when it goes on
                return
            is_due = self._evaluate_between() or is_due
            if self._state.owes_evaluation:
                return
            self._run.stop.window_done()
        if is_due and self._step < self.num_steps:
            self._log.flush()
            self._save()

    def _evaluate_between(self) -> bool:
        """Whether it is the best so far; one that is left, for a signal, is owed. A collective."""
        self._log.flush()  # what comes now is no part of a step
        self._state.owes_evaluation = True
        try:
            figures = self._evaluate(stop=self._run.stop)
        except LeftEarly:
            return False
        self._state.owes_evaluation = False
        self._log.evaluation(self._step, figures)
        return self._best.update(self._step, figures)

    def _watch(self, num_retries: int) -> None:
        """Cut smaller where this rank's allocator had to free and ask again since the last step."""
        if num_retries <= self._num_retries:
            return
        self._num_retries = num_retries
        if self.capacity.capacity.tighten() and not self._said_retries:
            self._said_retries = True
            self._log.say(
                f"step {self._step}: the allocator had to free memory and ask again, which is slow: micro-batches "
                "are cut a little smaller from here on, each time that it does"
            )

    def finish(self) -> Mapping[str, Any]:
        """Save the result and evaluate it; of a run that ends early a checkpoint, and raise what ended it.

        Raises:
            Stopped: if it was told to stop.
            NotFinite: if a loss or gradient was not finite, and `on_nonfinite` does not skip such windows.
            UserError: if data could not be read, or the result not be written.
        """
        run, ranks, checkpoints = self._run, self._run.ranks, self._checkpoints
        self._log.flush()
        early = self.nonfinite.gave_up or self._windows.failure
        if early or run.stop.is_asked_of_any(ranks):
            self._end_early(early or run.stop.agreed(ranks))
        checkpoints.wait(hurry=False)
        self._state.refuse_changed_base()
        exported = on_all_ranks(ranks, checkpoints.export)[0]  # before anything else can fail
        try:
            figures = self._evaluate(exported, run.stop)
        except LeftEarly:  # all that is left to do when the run goes on
            self._end_early(run.stop.agreed(ranks))
        run.stop.__exit__()  # from here on a signal ends the process, as signals do
        step, best = self._step, self._best
        self._log.evaluation(step, figures)
        is_best = best.update(step, figures) or best.step is None
        if not is_best and on_all_ranks(ranks, lambda: checkpoints.restore_weights(best.step or 0))[0]:
            self._log.say(f"by {best.metric} the checkpoint of step {best.step} is the best: it is the result")
            broadcast_weights(self.plain_model, self.accelerator)
            on_all_ranks(ranks, checkpoints.export)
            step, figures = best.step or step, self._evaluate(exported)
        self._log.finish(step, figures, self._windows, exported)
        checkpoints.write_card()
        self._write_tuning(keep_costs(self._tuning, self.capacity, ranks))
        self._contexts.close()
        self._log.trackers.end()
        end_accelerator(self.accelerator)
        return figures

    def _end_early(self, why: Exception | None) -> NoReturn:
        assert why is not None
        self._checkpoints.wait()
        if self._step:
            self._save()
        self._log.end_early(self._step, why, on_all_ranks(self._run.ranks, self._checkpoints.wait)[0])
        end_accelerator(self.accelerator)
        raise why

    @property
    def _is_through(self) -> bool:
        return self._step >= self.num_steps or self._best.is_beaten_for(self._config.early_stopping_patience)

    def _save(self) -> None:
        self._state.save(self._step, self._checkpoints)

    def _write_tuning(self, tunings: Sequence[Tuning]) -> None:
        if self._run.ranks.index == 0:
            write_json(self._run.folder / "tuning.json", tuning_json(tunings))

    def _evaluate(self, result: Path | None = None, stop: StopRequest | None = None) -> Mapping[str, Any]:
        if expected := self._evaluation.expected(self._log.seconds_per_example):
            self._log.say(expected)
        return self._evaluation.figures(self.plain_model, self.capacity, result, stop)
