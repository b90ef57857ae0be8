# The best items for a user of the data set: PyTorch, without kd_jax. export.formats has 'numpy'.
import numpy as np
import torch

with np.load("runs/quickstart/export/vectors.npz") as file:
    ids = {name: file[name].tolist() for name in ("users", "items")}
    users, items, bias = (
        torch.from_numpy(file[name]) for name in ("user_vectors", "item_vectors", "item_bias")
    )
user = ids["users"].index(ids["users"][0])
best = torch.topk(users[user] @ items.T + bias, 10).indices
print([ids["items"][item] for item in best.tolist()])
