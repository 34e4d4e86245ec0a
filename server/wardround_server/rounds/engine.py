"""The run: from the first question to the last, written once for simulation and deployment.

In order: every site describes itself; tables sum their moments; features sum to the exact head;
training rounds with federated validation; and a last step in which each site compares models on
its own held-out subjects. Every step is journalled; given the same federation file, seed and
answers, the final model has the same bytes whatever the order of arrival and the crashes between.
"""

import numpy as np
import torch

from wardround_common.crypto.signing import SigningKey
from wardround_common.errors import RoundError
from wardround_common.exact_head import RidgeHead, solve_head, sums_layout
from wardround_common.moments import FloatArray, moments_layout, moments_of
from wardround_common.shared_model import SharedModel
from wardround_common.spec.data import TabularData
from wardround_common.spec.exchange import UpdateCoding
from wardround_common.spec.federation import FederationSpec, Lora
from wardround_common.types import Digest, SiteId
from wardround_common.wire.bodies import DescribeBody
from wardround_common.wire.layout import Layout, as_bytes, pack, unpack
from wardround_common.wire.step import (
    StepKind,
    StepManifest,
    TableMoments,
    layout_to_wire,
)
from wardround_server.aggregation.exact_sum import ExactSum
from wardround_server.aggregation.registry import aggregation_for
from wardround_server.rounds.audit import NO_AUDIT, RunAudit
from wardround_server.rounds.carrier import Carrier
from wardround_server.rounds.journal import Journal
from wardround_server.rounds.members import Members
from wardround_server.rounds.outcome import (
    RoundRecord,
    RunOutcome,
    beside_exact_head,
    mean_loss,
    mean_metric,
    version_words,
)
from wardround_server.rounds.results import Observer, Quorum, StepResult
from wardround_server.rounds.roster_order import Fold
from wardround_server.rounds.state import GlobalState, Values, state_of
from wardround_server.rounds.steps import StepRunner, load_packed

SUM_BOUND = 1e30
"""Largest magnitude of a summed statistic: squares of columns in any unit, over all rows."""
SUM_FOLDS = 4
"""With the bound above, exact to 2^-76 for 50 sites: features in any unit keep 10 digits."""
_EMPTY = Layout(())
_NO_STATE = state_of(_EMPTY, np.zeros(0, dtype=np.float32))


class RoundEngine:
    """Drives one run.

    Args:
        model: the federation's model; only its layouts and initial values are used.
        carrier: how sites are reached.
        journal: the run's journal, empty for a new run.
        observer: who watches.
        run: the run's identifier, 16 hexadecimal digits.
        store_updates: see :class:`StepRunner`.
        key: signs every manifest; None where all sites are in this process.
        audit, members: see :class:`StepRunner`.
    """

    def __init__(
        self,
        model: SharedModel,
        carrier: Carrier,
        journal: Journal,
        observer: Observer,
        *,
        run: str,
        store_updates: bool,
        key: SigningKey | None = None,
        audit: RunAudit = NO_AUDIT,
        members: Members | None = None,
    ) -> None:
        self._key = key
        self._model = model
        self._spec: FederationSpec = model.federation
        self._journal = journal
        self._run = run
        self._runner = StepRunner(
            carrier,
            journal,
            observer,
            deadline_s=self._spec.rounds.deadline_s,
            store_updates=store_updates,
            audit=audit,
            members=members,
        )
        self._num_steps = 0
        self._moments: TableMoments | None = None
        self._memory = _NO_STATE  # what the aggregation rule remembers; nameless values
        self._kept: set[str] = set()
        self._ranks: dict[str, int] = {}
        self._quorum = Quorum(self._spec.quorum_sites, self._spec.rounds.quorum_subjects)

    def run(self) -> RunOutcome:
        """Carry the run to its end, from wherever the journal says it stands.

        Raises:
            RoundError: the quorum was not met where it must be; the message names who was missing.
            IntegrityError: the run folder is damaged or belongs to another run.
        """
        layout = self._model.state_layout(max(self._spec.rounds.count, 1))
        initial = pack(layout, self._model.initial).astype(np.float32, copy=False)
        try:
            outcome = RunOutcome(state_of(layout, initial), self._describe())
            outcome.steps.append(outcome.described)
            self._sum_moments(outcome)
            self._sum_head(outcome)
            self._train(outcome)
            self._compare(outcome)
        finally:
            self._journal.flush()
        outcome.journal_head = self._journal.head
        return outcome

    def _describe(self) -> StepResult:
        result = self._step("describe", 0, _NO_STATE, _EMPTY, bound=1.0, fold=None)
        self._require(result)
        self._ranks = self._smaller_ranks(result)
        return result

    def _smaller_ranks(self, described: StepResult) -> dict[str, int]:
        """The LoRA ranks below the federation's that sites declared."""
        tuning = self._spec.tuning
        if not isinstance(tuning, Lora) or tuning.merge != "product":
            return {}
        declared = {
            site: part.body.lora_rank
            for site, part in sorted(described.contributions.items())
            if isinstance(part.body, DescribeBody)
        }
        return {site: rank for site, rank in declared.items() if rank and rank < tuning.rank}

    def _sum_moments(self, outcome: RunOutcome) -> None:
        data = self._spec.data
        if not isinstance(data, TabularData) or data.standardise != "federated" or not data.numeric:
            return
        total = self._sum_step("moments", moments_layout(len(data.numeric)), outcome)
        self._moments = moments_of(total.reshape(3, -1))
        outcome.moments = self._moments

    def _sum_head(self, outcome: RunOutcome) -> None:
        head = self._spec.exact_head
        if not head.enabled:
            return
        folds = head.folds if head.ridge == "auto" else 1
        sizes = (self._model.feature_dim, self._model.task.num_outputs, folds)
        total = self._sum_step("gram", sums_layout(*sizes), outcome)
        outcome.exact_head = solve_head(total, *sizes, None if head.ridge == "auto" else head.ridge)
        if self._spec.head.warm_start or self._spec.rounds.count == 0:
            outcome.state = self._with_head(outcome.state, outcome.exact_head)

    def _with_head(self, state: GlobalState, head: RidgeHead) -> GlobalState:
        """The state with its linear head replaced by the exact one."""
        weight, bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)
        tensors = unpack(state.layout, state.values) | self._model.head_state(weight, bias)
        values = pack(state.layout, tensors).astype(np.float32, copy=False)
        return state_of(state.layout, values)

    def _sum_step(self, kind: StepKind, layout: Layout, outcome: RunOutcome) -> FloatArray:
        """Sum one float64 array over the sites, exactly and whatever the order."""
        total = ExactSum(
            layout.num_values,
            bound=SUM_BOUND,
            terms=len(self._spec.federation.sites),
            folds=SUM_FOLDS,
        )
        result = self._step(
            kind,
            0,
            _NO_STATE,
            layout,
            bound=SUM_BOUND,
            fold=lambda _, update, __: total.add(update),
        )
        outcome.steps.append(result)
        self._require(result)
        if result.recorded is None:
            summed = total.total()
            produced = self._journal.store(as_bytes(summed))
            self._runner.finish(result, produced)
            self._kept.add(produced)
            self._tidy()
        else:
            produced = Digest(str(result.recorded["produced"]))
            self._kept.add(produced)
            stored = load_packed(self._journal, produced, layout)
            summed = stored.astype(np.float64, copy=False)
        return summed

    def _train(self, outcome: RunOutcome) -> None:
        rounds, abandoned = self._spec.rounds, 0
        best: tuple[float, GlobalState, int] | None = None
        for round_ in range(1, rounds.count + 1):
            result = self._train_round(outcome, round_)
            abandoned = abandoned + 1 if result.abandoned else 0
            if abandoned > rounds.max_abandoned:
                self._require(result)  # left open: a resumed run asks the missing sites again
            if result.abandoned:
                self._runner.finish(result)
            loss = None if result.abandoned else mean_loss(result)
            metric = None if result.abandoned else self._evaluate(outcome, round_)
            outcome.rounds.append(RoundRecord(round_, result, loss, metric))
            better = metric is not None and (best is None or metric > best[0])
            if rounds.early_stopping and metric is not None and better:
                best = (metric, outcome.state, round_)
            if outcome.steps[-1].recorded is None:
                self._tidy(outcome.state, *([] if best is None else [best[1]]))
            if best and rounds.early_stopping and round_ - best[2] >= rounds.early_stopping:
                break
        if best is not None:
            outcome.state, outcome.model_round = best[1], best[2]

    def _train_round(self, outcome: RunOutcome, round_: int) -> StepResult:
        layout = self._model.layout(round_)
        state = outcome.state.part(self._model.state_layout(round_))
        ranks = {SiteId(site): rank for site, rank in self._ranks.items()}
        rule = aggregation_for(self._spec, layout, ranks)
        result = self._step(
            "train",
            round_,
            state,
            layout,
            bound=self._spec.limits.update_norm,
            fold=rule.fold,
            coding=self._spec.exchange.update,
        )
        outcome.steps.append(result)
        if result.abandoned:
            return result
        if result.recorded is not None:
            outcome.state = self._stored(outcome.state.layout, result.recorded["produced"])
            self._memory = self._stored(_EMPTY, result.recorded["memory"])
        else:
            values, remembered = rule.finish(state.part(layout).values, self._memory.values)
            self._memory = state_of(_EMPTY, remembered)
            outcome.state = outcome.state.with_part(layout, values)
            self._runner.finish(result, self._keep(outcome.state), self._keep(self._memory))
        outcome.model_round = round_
        return result

    def _keep(self, state: GlobalState) -> Digest | None:
        """Store an array for a resumed run; None for an empty one."""
        if state.values.size == 0:
            return None
        self._journal.store_as(state.digest(), as_bytes(state.values))
        return state.digest()

    def _stored(self, layout: Layout, digest: object) -> GlobalState:
        """What an earlier process stored, read when it is needed."""
        if digest is None:
            return _NO_STATE
        name = Digest(str(digest))
        return GlobalState(layout, lambda: _floats(self._journal.load(name)), name)

    def _evaluate(self, outcome: RunOutcome, round_: int) -> float | None:
        evaluation = self._spec.evaluation
        if self._spec.data.validation_fraction == 0.0 or round_ % evaluation.every_rounds:
            return None
        state = outcome.state.part(self._model.state_layout(round_))
        result = self._step(
            "evaluate", round_, state, _EMPTY, bound=1.0, fold=None, quorum=Quorum(1, 1)
        )
        self._runner.finish(result)
        outcome.steps.append(result)
        return mean_metric(result)

    def _compare(self, outcome: RunOutcome) -> None:
        state = state_of(*beside_exact_head(outcome))
        result = self._step(
            "compare",
            outcome.model_round,
            state,
            _EMPTY,
            bound=1.0,
            fold=None,
            quorum=Quorum(1, 1),
        )
        self._runner.finish(result)
        outcome.steps.append(result)
        outcome.compared = result

    def _step(
        self,
        kind: StepKind,
        round_: int,
        state: GlobalState,
        reply: Layout,
        *,
        bound: float,
        fold: Fold | None,
        quorum: Quorum | None = None,
        coding: UpdateCoding | None = None,
    ) -> StepResult:
        manifest = StepManifest(
            run=self._run,
            step=self._num_steps,
            kind=kind,
            round=round_,
            sites=self._spec.federation.sites,
            spec_sha256=self._spec.digest(),
            backbone_sha256=self._model.backbone_digest,
            state=layout_to_wire(state.layout),
            state_sha256=self._runner.asked_state(self._num_steps) or state.digest(),
            reply=layout_to_wire(reply),
            ranks=self._ranks if kind == "train" else {},
            update_norm=self._spec.limits.update_norm,
            subjects=self._spec.limits.subjects,
            bound=bound,
            seed=self._spec.federation.seed,
            moments=self._moments,
            head=self._runner.head_for(self._num_steps),
        )
        self._num_steps += 1
        if self._key is not None:
            manifest = manifest.signed(self._key)
        return self._runner.run(manifest, state, quorum or self._quorum, fold, coding)

    def _require(self, result: StepResult) -> None:
        """Fail the run if a step that nothing can replace was abandoned."""
        if not result.abandoned:
            if result.manifest.kind == "describe":
                self._runner.finish(result)
            return
        reasons = [f"{site} ({code})" for site, code in result.refused]
        reasons += [f"{site} (no answer)" for site in result.missing]
        raise RoundError(
            f"step {result.manifest.kind}: {len(result.contributions)} of "
            f"{len(result.manifest.sites)} sites with {result.num_subjects} subjects contributed, "
            f"{self._quorum.sites} sites with {self._quorum.subjects} subjects are needed; "
            f"without: {', '.join(reasons) or 'nobody'}{version_words(result)}",
            code="quorum_not_met",
        )

    def _tidy(self, *states: GlobalState) -> None:
        """Delete updates and past states; called only when no later step has begun.

        Args:
            states: those that a resumed run would need.
        """
        self._journal.keep_only(self._kept | {state.digest() for state in (*states, self._memory)})
        self._journal.settle()


def _floats(data: bytes) -> Values:
    values: Values = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    return values
