"""Matrix factorisations of clicks, by the package implicit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix

from kd_jax.core.errors import InputError
from kd_jax.core.scores import Factors
from kd_jax.evaluation.baselines.base import Clicks, Fitted, clicked

FACTORS = 64


def check_package(name: str) -> None:
    """Raises InputError without the package."""
    if importlib.util.find_spec("implicit") is None:
        raise InputError(
            f"eval.baselines: {name!r} needs the package implicit; pip install"
            " 'kd_jax[baselines]', or leave it out"
        )


@dataclass(frozen=True)
class Ials:
    """Weighted least squares over all pairs of a user and an item.

    A user's vector is fitted to the clicks before the split. Source: Hu, Koren & Volinsky,
    "Collaborative filtering for implicit feedback datasets", ICDM 2008, equations 3 to 5.
    """

    settings: tuple[dict[str, float], ...] = (
        {"alpha": 1.0, "regularization": 0.1},
        {"alpha": 1.0, "regularization": 10.0},
        {"alpha": 10.0, "regularization": 0.1},
        {"alpha": 10.0, "regularization": 10.0},
    )

    def fit(self, clicks: Clicks, *, alpha: float, regularization: float) -> Fitted:
        """alpha: the weight of a click over that of no click. 15 iterations."""
        from implicit.cpu.als import AlternatingLeastSquares

        how = {"alpha": alpha, "regularization": regularization, "iterations": 15}
        model = _fitted(AlternatingLeastSquares, how, clicks)
        vectors, bias = jnp.asarray(model.item_factors), jnp.zeros(clicks.shape[1])

        def scores(users: np.ndarray, history: Clicks) -> Factors:
            contexts = model.recalculate_user(users, csr_matrix(history))
            return Factors(jnp.asarray(contexts), vectors, bias)

        params = model.user_factors.size + model.item_factors.size
        return Fitted(scores, params, factorised=True)


@dataclass(frozen=True)
class Bpr:
    """Pairs of an item that the user chose and one of another user, by stochastic gradients.

    A user without a click in training has the items' biases alone. Source: Rendle et al., "BPR:
    Bayesian personalized ranking from implicit feedback", UAI 2009.
    """

    settings: tuple[dict[str, float], ...] = (
        {"learning_rate": 0.01, "regularization": 0.01},
        {"learning_rate": 0.01, "regularization": 0.1},
        {"learning_rate": 0.05, "regularization": 0.01},
        {"learning_rate": 0.05, "regularization": 0.1},
    )

    def fit(self, clicks: Clicks, *, learning_rate: float, regularization: float) -> Fitted:
        """100 passes by one thread, since the result of several depends on their timing."""
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        how = {"learning_rate": learning_rate, "regularization": regularization}
        how |= {"iterations": 100, "num_threads": 1}
        model = _fitted(BayesianPersonalizedRanking, how, clicks)
        known = np.diff(clicks.indptr) > 0
        of_users = np.where(known[:, None], model.user_factors[:, :FACTORS], np.float32(0))
        of_items = np.where(clicked(clicks)[:, None], model.item_factors, np.float32(0))
        vectors, bias = jnp.asarray(of_items[:, :FACTORS]), jnp.asarray(of_items[:, FACTORS])

        def scores(users: np.ndarray, history: Clicks) -> Factors:
            return Factors(jnp.asarray(of_users[users]), vectors, bias)

        return Fitted(scores, of_users.size + of_items.size, factorised=True)


def _fitted(kind: Callable[..., Any], how: Mapping[str, Any], clicks: Clicks) -> Any:
    """The model, fitted with one thread of BLAS, as implicit has threads of its own."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        model = kind(FACTORS, random_state=0, **how)
        model.fit(csr_matrix(clicks), show_progress=False)
    return model
