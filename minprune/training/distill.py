"""Learning from the dense model what the text alone does not say. Chapter 18.

    L = share * T^2 KL(p_teacher || p_student) + (1 - share) * cross-entropy
        + hidden * mean over layers of ||h_student - h_teacher||^2 / ||h_teacher||^2

with both p taken at temperature T, and T^2 so that the size of the gradient does not depend on it (Hinton et al. 2015).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from minprune.arguments import check_fields
from minprune.errors import PruneError
from minprune.models.modes import eval_mode


@dataclass(frozen=True)
class Distillation:
    """What a student is to learn from a dense model. It is called with the student and tokens, and gives a loss.

    Parameters
    ----------
    teacher : nn.Module
        The dense model. Its dropout, if it has any, is off while it is asked.
    share : float, default 1.0
        Of the teacher's predictions in the loss, 0 to 1. The rest is the text's own next tokens.
    temperature : float, default 1.0
        Above 1 the teacher's smaller probabilities count for more.
    hidden : float, default 0.0
        The weight of the distance of all hidden states, which needs a student as wide and as deep as its teacher.

    Raises
    ------
    PruneError
        For a number out of range.

    Examples
    --------
    A student that is its teacher has nothing to learn:

    >>> import torch
    >>> from minprune.training.distill import Distillation
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1))
    >>> abs(Distillation(model)(model, torch.randint(50, (2, 8))).item()) < 1e-6
    True
    """

    teacher: nn.Module
    share: float = 1.0
    temperature: float = 1.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.share <= 1:
            raise PruneError(f"share {self.share:g} is outside 0..1: it is the teacher's part of the loss")
        if not 1e-4 <= self.temperature <= 1e4 or not 0 <= self.hidden < math.inf:
            raise PruneError(
                f"temperature {self.temperature:g} must be from 0.0001 to 10000 and hidden {self.hidden:g} at least 0"
            )

    def __call__(self, student: nn.Module, tokens: Tensor) -> Tensor:
        """The loss on tokens (windows, length): a scalar, in nats but for the hidden part."""
        states = self.hidden > 0
        with torch.no_grad(), eval_mode(self.teacher):  # what it says is not random
            teacher_out = self.teacher(input_ids=tokens, use_cache=False, output_hidden_states=states)
        student_out = student(input_ids=tokens, use_cache=False, output_hidden_states=states)
        _check_alike(student_out, teacher_out, states)
        T, loss = self.temperature, torch.zeros((), device=tokens.device)
        if self.share:
            p, q = (log_softmax(out.logits.flatten(0, 1).float() / T, dim=-1) for out in (teacher_out, student_out))
            loss = loss + self.share * T**2 * kl_div(q, p, reduction="batchmean", log_target=True)
        if self.share < 1:
            loss = loss + (1 - self.share) * next_token_loss(student_out.logits, tokens)
        if states:
            pairs = zip(student_out.hidden_states, teacher_out.hidden_states, strict=True)
            hidden_loss = torch.stack([(h - g).square().sum() / g.square().sum() for h, g in pairs])  # (layers + 1,)
            loss = loss + self.hidden * hidden_loss.mean()
        return loss


def _check_alike(student_out, teacher_out, states: bool) -> None:
    """Raise `PruneError` if a teacher's predictions or hidden states cannot be compared with the student's."""
    if student_out.logits.shape[-1] != teacher_out.logits.shape[-1]:
        raise PruneError(
            f"the student predicts {student_out.logits.shape[-1]} tokens and the teacher "
            f"{teacher_out.logits.shape[-1]}: take the dense model that the student was made from"
        )
    if states and [h.shape for h in student_out.hidden_states] != [h.shape for h in teacher_out.hidden_states]:
        raise PruneError("the teacher is not as deep and wide as the student: leave hidden states out (hidden=0)")


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """The mean -log p, in nats, of every token but the first: logits (windows, length, vocabulary) -> a scalar."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def language_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of a language model on tokens (windows, length) without a teacher."""
    return next_token_loss(model(input_ids=tokens, use_cache=False).logits, tokens)
