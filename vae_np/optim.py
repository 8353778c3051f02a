"""Adam on one flat buffer, gradient clipping, and the schedules of the learning rate and of beta."""

import math

from vae_np.backend import Replaceable, xp


class Adam(Replaceable):
    """Adam (Kingma and Ba 2015), updating the flat array `values` from the flat array `grads`, in place.

        m = beta1 m + (1 - beta1) g              a running mean of the gradient
        v = beta2 v + (1 - beta2) g^2            a running mean of its square
        values -= learning_rate * m_hat / (sqrt(v_hat) + epsilon)

    m and v start at 0 and are too small at first: m_hat = m / (1 - beta1^t) and v_hat = v / (1 - beta2^t), with t the
    number of the step, make up for it.
    """

    def __init__(self, values, grads, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.values, self.grads = values, grads
        self.m, self.v = xp.zeros_like(values), xp.zeros_like(values)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.step = 0

    def update(self, learning_rate):
        """Take one step against the gradient."""
        self.step += 1
        m_correction, v_correction = 1 - self.beta1**self.step, 1 - self.beta2**self.step
        self.m += (1 - self.beta1) * (self.grads - self.m)
        self.v += (1 - self.beta2) * (self.grads**2 - self.v)
        self.values -= learning_rate * (self.m / m_correction) / (xp.sqrt(self.v / v_correction) + self.epsilon)


def clip_gradient(grads, max_norm):
    """Scale the flat gradient in place so that its norm is at most max_norm; return the norm that it had.

    A NaN or an infinity shows in that norm; what to do then is for the caller to say.
    """
    norm = xp.sqrt(xp.vdot(grads, grads))
    grads *= max_norm / xp.maximum(norm, max_norm)
    return norm


def learning_rate_at(step, total_steps, peak, warmup_steps=0, final=0.0):
    """Linear warm-up to peak, then half a cosine down to final * peak (Loshchilov and Hutter 2017).

        rate = peak (final + (1 - final) (1 + cos(pi progress)) / 2),    progress from 0 to 1 after the warm-up

    step counts from 0 and the last one is total_steps - 1; final = 1 keeps the rate constant after the warm-up, which
    takes at most a tenth of all steps.
    """
    warmup_steps = min(warmup_steps, total_steps // 10)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps - 1)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def beta_at(step, beta, warmup_steps=0):
    """The weight of the KL divergence: linear from 0 to beta over warmup_steps, then constant.

    Bowman et al. 2016 found that a KL term at full weight from the start lets the encoder give up.
    """
    return beta * (min(1.0, step / warmup_steps) if warmup_steps else 1.0)


def cyclical_beta_at(step, total_steps, beta, cycles):
    """The weight of the KL divergence in cycles: each starts again at 0, rises for one half and stays for the other.

    While beta is small, codes that say more cost little, and the decoder learns to use them (Fu et al. 2019).
    """
    share = (step * cycles % total_steps) / total_steps  # of the cycle; % on whole numbers, so that none starts late
    return beta * min(1.0, 2 * share)
