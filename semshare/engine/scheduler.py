"""Continuous batching: every step is one pass through the layers for all that can go on.

A prompt is prefilled in chunks beside the decoding of others. Where the pool is full, repairs go
first, then slots reserved for answers, then the youngest request, which is computed again later.
Nothing here knows how a prompt is planned or what is kept of it: see `Stages`.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import count

from semshare.engine.admission import Admission
from semshare.engine.continuation import Continuation
from semshare.engine.decodes import DecodeStep, DecodeTasks
from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.failures import log_failure
from semshare.engine.generation import Generation, Request
from semshare.engine.repairs import Repairs
from semshare.engine.rows import PromptRows
from semshare.engine.served import Served
from semshare.engine.stages import Stages
from semshare.engine.stopwatch import Stopwatch
from semshare.engine.tasks import Task, compute
from semshare.errors import DeadlineExceeded, PoolExhausted, StepFailed
from semshare.kv.sequence import KVSequence
from semshare.types import FinishReason, TextDelta


class Scheduler:
    """Requests from their arrival to the end of their answers. Callers hold one lock.

    Args:
        executor: the model and its pool.
        stages: see `Stages`.
        admission: where requests wait.
        prefill_rows: most rows of prompts in a step that others decode in.
        repair_rows: rows of repairs a step, on average.
        max_answers: most answers that are decoded at a time.

    """

    def __init__(
        self,
        executor: Executor,
        stages: Stages,
        admission: Admission,
        *,
        prefill_rows: int,
        repair_rows: int,
        max_answers: int,
    ) -> None:
        self._executor = executor
        self._stages = stages
        self._admission = admission
        self._prefill_rows = prefill_rows
        self._repairs = Repairs(executor, stages, rows_a_step=repair_rows, chunk=prefill_rows)
        self._decode_tasks = DecodeTasks(executor.adapter.dtype, self._finish_if_ended, self._fail)
        self._max_answers = max_answers
        self._arrivals = count()
        self._prefilling: list[Generation] = []
        self._running: list[Generation] = []
        self._is_full = False  # nobody is admitted before somebody leaves
        self._is_stepping = False
        self._cancelled: list[Generation] = []  # in the middle of this step
        self.preemptions = 0

    def submit(self, request: Request, watch: Stopwatch) -> Generation:
        """Let a request wait for its turn."""
        generation = Generation(request, watch, next(self._arrivals))
        self._admission.waiting.append(generation)
        return generation

    def step(self) -> None:
        """One pass through the layers for everything that can go on.

        Raises:
            BaseException: what no request is to blame for, an interrupt perhaps. Whoever was
                computed in the step has failed then.

        """
        self._is_stepping = True
        try:
            self._compute_step()
        except BaseException as error:
            self._break_off(error)
            raise
        finally:
            self._is_stepping = False
            for generation in self._cancelled:
                self._drop(generation)
            self._cancelled.clear()

    def _compute_step(self) -> None:
        self._drop_late()
        self._admit()
        decodes = self._decodes()  # first: for its slots others may be preempted
        prefills = self._prefills()
        idle = not self._admission.waiting and len(self.active) == 1
        repair = self._repairs.task(self._in_order(), idle=idle)
        compute(self._executor, [*decodes, *prefills, *([repair] if repair else [])])

    def cancel(self, generation: Generation) -> None:
        """End a request that nobody waits for, and give back all that it holds.

        A stream may be closed by the garbage collector, in the middle of a step of its own thread.
        """
        if self._is_stepping:
            self._cancelled.append(generation)
        elif not generation.ended:
            self._drop(generation)

    def _drop(self, generation: Generation) -> None:
        generation.ended = True
        self._take_out(generation)
        generation.release()
        self._is_full = False

    def _take_out(self, generation: Generation) -> None:
        for several in (self._admission.waiting, self._prefilling, self._running):
            if generation in several:
                several.remove(generation)

    def rows_outside(self) -> int | None:
        """Most rows that may be computed between two steps; None for any number."""
        return self._prefill_rows if self._running or self._admission.waiting else None

    def _in_order(self) -> list[Generation]:
        return sorted(self._running, key=lambda one: one.arrival)

    @property
    def active(self) -> list[Generation]:
        """Requests that hold slots, in order of arrival."""
        return sorted((*self._prefilling, *self._running), key=lambda one: one.arrival)

    @property
    def waiting(self) -> int:
        """Requests that hold nothing yet."""
        return len(self._admission.waiting)

    # -------------------------------------------------------------- admission

    def _drop_late(self) -> None:
        now = time.monotonic()
        for generation in (*self._admission.waiting, *self.active):
            deadline = generation.request.deadline
            if deadline is None or now < deadline:
                continue
            if generation.has_answered:
                self._end(generation, "deadline")
            else:
                self._fail(generation, DeadlineExceeded(generation.watch.elapsed_s))

    def _admit(self) -> None:
        """Let prompts begin, as many as a step can prefill and the pool has slots for."""
        while sum(one.prompt.rows_left for one in self._prefilling) < self._prefill_rows:
            active = self.active
            generation = self._admission.next(active, self._prefilling)
            if generation is None:
                return
            if active and (self._is_full or not self._has_place_for(generation)):
                return
            try:
                served = self._stages.begin(
                    generation.request, generation.watch, in_full_if_short=not active
                )
            except PoolExhausted as error:
                if active:
                    self._is_full = True
                    return
                if generation.has_answered:
                    self._end(generation, "length")
                else:
                    self._fail(generation, error)
            except Exception as error:
                self._fail(generation, error)
            else:
                generation.begin_with(served)
                self._admission.waiting.remove(generation)
                self._prefilling.append(generation)

    def _has_place_for(self, generation: Generation) -> bool:
        answers = sum(one.request.n for one in self.active)
        return answers + generation.request.n <= self._max_answers

    # ---------------------------------------------------------------- prefills

    def _prefills(self) -> list[Task]:
        """A chunk of each prompt, in order of admission, up to a step's rows.

        Where nobody waits for the next token the first prompt is not cut: that is fastest.
        """
        tasks = []
        left = self._prefill_rows
        for generation in self._prefilling:
            if left <= 0:
                break
            rows = generation.prompt.next_rows(left if self._running else None)
            left -= len(rows.ids)
            took = partial(self._took_prefill, generation, rows)
            failed = partial(self._prefill_failed, generation)
            tasks.append(Task(rows, took, failed, partial(self._is_prefilling, generation)))
        return tasks

    def _is_prefilling(self, generation: Generation) -> bool:
        return generation in self._prefilling

    def _took_prefill(
        self, generation: Generation, rows: PromptRows, result: ForwardResult, seconds: float
    ) -> None:
        if generation not in self._prefilling:
            return  # preempted for slots that another result of this pass wanted
        served = generation.prompt
        generation.watch.add("prefill", seconds)
        served.took(rows, result)
        if not served.prefilled:
            return
        self._prefilling.remove(generation)
        self._running.append(generation)
        self._stages.prefilled(served)
        for follower in self._admission.followers_of(generation):
            if self._has_place_for(follower):
                self._join(follower, served)
        self._start(generation)

    def _prefill_failed(self, generation: Generation, error: Exception) -> None:
        if generation in self._running:  # its answer could not begin
            self._fail(generation, error)
            return
        try:
            generation.prompt.failed(error)
        except PoolExhausted as final:
            if len(self.active) == 1:
                self._fail(generation, final)
            else:  # computing all of it takes slots that others have now
                self._preempt(generation)
        except Exception as final:
            self._fail(generation, final)

    def _join(self, follower: Generation, leader: Served) -> None:
        """Answer the same prompt over the KV that is there."""
        room = follower.request.room
        try:
            served = leader.joined(follower.watch, room=room)
        except PoolExhausted:
            return  # it waits, and finds its prompt cached or computes it
        except Exception as error:
            self._fail(follower, error)
            return
        follower.begin_with(served)
        self._admission.waiting.remove(follower)
        self._running.append(follower)
        try:
            self._stages.prefilled(served)
            self._start(follower)
        except Exception as error:
            self._fail(follower, error)

    def _start(self, generation: Generation) -> None:
        """Begin the answers of a prefilled prompt, or go on with them."""
        while generation in self._running:
            try:
                self._begin_answers(generation)
            except PoolExhausted:
                if len(self.active) == 1 and not generation.has_answered:
                    raise
                self._make_room_for(generation)
            else:
                self._finish_if_ended(generation)
                return

    def _begin_answers(self, generation: Generation) -> None:
        if generation.continuations:
            for one in generation.going_on:
                one.go_on_from(self._sequence_for(generation, one.max_tokens))
            return
        generation.continuations = self._new_answers(generation)
        for one in generation.continuations:
            one.take(generation.prompt.logits[-1])
        generation.watch.first_token()

    def _new_answers(self, generation: Generation) -> list[Continuation]:
        """All answers of a prompt, or none and no slots."""
        request = generation.request
        sequences: list[KVSequence] = []
        try:
            while len(sequences) < request.n:
                sequences.append(self._sequence_for(generation, request.max_tokens))
            return [
                self._stages.continuation(generation, index, sequence)
                for index, sequence in enumerate(sequences)
            ]
        except BaseException:
            for sequence in sequences:
                sequence.release()
            raise

    def _sequence_for(self, generation: Generation, room: int) -> KVSequence:
        """For one answer: the prompt's own, or where there are several answers, one of its own."""
        sequence = generation.prompt.sequence
        return sequence if generation.request.n == 1 else sequence.fork(room=room)

    # ----------------------------------------------------------------- answers

    def _decodes(self) -> list[Task]:
        """The next rows of every answer.

        Slots are taken for the oldest first; for them younger requests may be preempted.
        """
        steps: list[DecodeStep] = []
        for generation in self._in_order():
            for one in generation.going_on:
                rows = self._rows_with_slots(generation, one)
                if rows is not None:
                    steps.append(DecodeStep(generation, one, rows))
        return self._decode_tasks.of([step for step in steps if step.generation in self._running])

    # ------------------------------------------------------------------- slots

    def _rows_with_slots(self, generation: Generation, one: Continuation) -> PromptRows | None:
        """An answer's next rows; None if they had to wait or the answer had to end."""
        while generation in self._running and not one.ended:
            try:
                return one.next_rows(self._prefill_rows)
            except PoolExhausted:
                self._make_room_for(generation)
        return None

    def _make_room_for(self, generation: Generation) -> None:
        """Free some slots at somebody's cost, the youngest's first, and at its own if need be."""
        active = self.active
        if any(other.give_up_repair() for other in reversed(active)):  # one is enough
            return
        if sum(other.give_back_spare() for other in active):
            return
        youngest = active[-1]
        if len(active) > 1:
            self._preempt(youngest)
        else:  # what has been answered is worth more than an error
            self._end(generation, "length")

    def _preempt(self, generation: Generation) -> None:
        """Take all slots of a request, which computes its prompt and its answers again later."""
        self.preemptions += 1
        self._take_out(generation)
        generation.release()
        generation.prompt.preempted = True
        self._admission.waiting.append(generation)
        self._is_full = True

    # --------------------------------------------------------------------- end

    def _end(self, generation: Generation, reason: FinishReason) -> None:
        for one in generation.going_on:
            one.end(reason)
        self._finish_if_ended(generation)

    def _finish_if_ended(self, generation: Generation) -> None:
        """Hand out the answer once all parts of it have ended."""
        if not generation.going_on and not generation.ended:
            generation.outbox.append(TextDelta("", [], self._stages.answer(generation)))
            self._drop(generation)

    def _break_off(self, cause: BaseException) -> None:
        """Nobody's KV can be trusted any more to be what its tokens say."""
        log_failure("a step was broken off", cause)
        for generation in self.active:
            self._fail(generation, StepFailed(cause))

    def _fail(self, generation: Generation, error: Exception) -> None:
        generation.error = error
        self._drop(generation)
