"""What codes in an audit log mean, in words for people who did not write the software."""

from typing import Final

KINDS: Final = {
    "describe": "counts of patients",
    "moments": "sums of columns",
    "gram": "sums of features",
    "train": "model updates",
    "evaluate": "validation scores",
    "compare": "comparison of models",
}
"""Kind of question -> what its answer is."""

EVENTS: Final = {
    "log_opened": "The log begins",
    "log_repaired": "A line that a crash had left half written was cut off",
    "log_shortened": "Entries older than the years to be kept were let go",
    "policy_loaded": "The worker started under this policy",
    "run_approved": "A run that somebody had approved began",
    "update_withheld": "An answer was computed and kept here (dry run)",
    "run_opened": "The aggregator began, or went on with, the run",
    "run_completed": "The run ended with a model",
    "run_failed": "The run ended without a model",
    "site_invited": "A token for a site was made",
    "site_enrolled": "A site was let in",
    "site_renewed": "A site's certificate was renewed",
    "site_rotated": "A site was given new keys",
    "site_revoked": "A site was let in no more",
    "site_key_pinned": "A site signed its first answer; from then on only this key counts",
    "run_ended": "A run ended or was interrupted",
}
"""Event -> what was decided or happened, beside questions and answers."""

REFUSALS: Final = {
    "policy_signature": "the coordinator had not signed the question",
    "policy_coordinator": "who asked is not among the coordinators of the policy",
    "policy_head": "the aggregator did not show where its own log stands",
    "policy_history": "the aggregator showed another history than before",
    "policy_task": "the policy does not allow this kind of task",
    "policy_step": "the policy does not allow this kind of question",
    "policy_backbone": "the policy does not name this pretrained model",
    "policy_tensors": "the policy does not name one of the tensors that were asked for",
    "policy_values": "the update would have more values than the policy allows",
    "policy_update_norm": "updates could be longer than the policy allows",
    "policy_sites": "fewer sites take part than the policy demands",
    "policy_metrics": "the policy does not allow the federation's metric to leave",
    "policy_differential_privacy": "the policy demands differential privacy",
    "policy_secure_sums": "the policy demands secure sums",
    "policy_hours": "it was outside the hours of the policy",
    "policy_approval": "nobody here had approved the run",
    "policy_rounds_per_day": "as many updates as the policy allows had left that day",
    "policy_runs_per_day": "as many runs as the policy allows had been answered that day",
    "policy_repeated": "another question of that kind had been answered in that round of the run",
    "policy_subjects": "there are fewer patients than the policy demands",
    "policy_differencing": "the patients were nearly those of an earlier answer",
    "policy_small_cell": "a sum would have been over too few patients",
    "policy_dry_run": "the policy is set to dry run: the answer was kept here",
    "egress_question": "the answer named another question",
    "egress_site": "the answer named another site",
    "egress_tensors": "the answer had other tensors than were asked for",
    "egress_subjects": "the answer claimed an impossible number of patients",
    "egress_receipt": "the receipt had another form",
    "egress_body": "the receipt said more, or something else, than it may",
    "egress_seconds": "times were given more exactly than they may be",
    "egress_bytes": "the update had another size than was promised",
    "egress_digest": "the update was not the one that the receipt named",
    "egress_coding": "the update was coded in a way that coding never writes",
    "egress_finite": "the update held a value that is not a number",
    "egress_bound": "the update held a value that is too large",
    "egress_norm": "the update was longer than the policy or the federation allows",
}
"""Code of a refusal -> why."""
