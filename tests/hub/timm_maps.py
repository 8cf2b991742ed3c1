"""timm's own attention maps, computed from its projections and norms on what its blocks receive: the oracle."""

import torch


def random_everywhere(model, seed=2, spread=0.05):
    """Also where a model starts from zeros and ones; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def timm_maps(model, images, layer=-1):
    """One layer's softmax maps (batch, heads, query, key), and the subtracted ones of differential attention."""
    received = []
    block = model.blocks[layer]
    handle = block.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    model(images)
    handle.remove()
    attn, x = block.attn, block.norm1(received[0])
    q, k, _ = attn.qkv(x).chunk(3, dim=2)
    q, k = (part.unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for part in (q, k))
    scores = (attn.q_norm(q) * attn.head_dim**-0.5) @ attn.k_norm(k).transpose(-2, -1)
    maps = scores.softmax(dim=-1)
    return (maps[:, 0::2], maps[:, 1::2]) if hasattr(attn, "lambda_q1") else (maps, None)
