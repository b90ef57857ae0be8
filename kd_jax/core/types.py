"""Shapes, in one place.

B batch, P predicted positions per example, L sequence, D width, H heads, I items (the catalogue), U
users, K candidates, M targets per position, V vocabulary, C classes, N rows.

A *batch* is a dict of arrays with leading axis B, flat but for two. Models and objectives read
these keys:

=================  ===============  ==========================================================================
key                shape            meaning
=================  ===============  ==========================================================================
user               int32  [B]       user index
history            int32  [B, L]    item indices, oldest first, newest last, padded on the left with ``PAD``
targets            int32  [B, P, M] item indices (rank) or class indices (rate), padded with ``PAD``
target_weights     f32    [B, P, M] share of each target; a row sums to 1, or to 0 where there is no target
weights            f32    [B, P]    weight of each position in the mean
snapshot           int32  [B]       with trends: the moment of the trends that the batch lives in, the same for all rows
context_row        int32  [B]       row of the written history, for a teacher that reads histories as text
item               int32  [B]       rate only: the item of the pair
history_class      int32  [B, L]    rate only: rating class given to each history item, ``PAD`` where padded
live_items         dict             width -> int32 [K]: distinct items whose texts have at most so many tokens, for a
                                    language model in training; padded with ``PAD``
pair_ids           int32  [B, L]    cross-encoder in training: tokens of the user's text and the item's together
pair_mask          int32  [B, L]    0 padding, 1 a token of the user's text, 2 (``encoder.SECOND``) one of the item's
interaction        int32  [B]       rate only: row of the data set
row                int32  [B]       position of the example in its table; cached soft labels are looked up by it
labels of <name>   dict             cached soft labels that fit no device: what the teacher <name> says of these rows
=================  ===============  ==========================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

Array = jax.Array
Batch = dict[str, Any]
Params = dict[str, Any]
PyTree = Any

PAD = -1


class TrainState(NamedTuple):
    """All that training changes. ``key`` is raw key data (uint32 [2]); every step folds its own
    number into it.
    """

    step: Array
    params: Params
    opt_state: PyTree
    key: Array
