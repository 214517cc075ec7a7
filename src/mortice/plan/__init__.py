"""The questions: where a model should run, cut how, at what price, and what in it fights the hardware.

Owns the formulas of co-design, attention-FFN disaggregation, expert parallelism and supernodes, and the answers,
tables, pictures and report made of them; prices come from `cost`, facts from `specs`. Knows nothing of torch, of
sockets, of a live cluster.
"""

from mortice.plan.afd_question import afd_question
from mortice.plan.answer import Answer
from mortice.plan.compare import compare_question
from mortice.plan.cost_question import cost_question
from mortice.plan.density import density_question
from mortice.plan.deploy import deploy_question
from mortice.plan.design import design_question
from mortice.plan.ep import ep_question
from mortice.plan.explain import explain_question
from mortice.plan.kv import kv_question
from mortice.plan.placement import placement_table
from mortice.plan.roofline import roofline_question
from mortice.plan.supernode import supernode_question

__all__ = [
    "Answer",
    "afd_question",
    "compare_question",
    "cost_question",
    "density_question",
    "deploy_question",
    "design_question",
    "ep_question",
    "explain_question",
    "kv_question",
    "placement_table",
    "roofline_question",
    "supernode_question",
]
