"""The parts of the encoder around attention, faster: patches, block, MLP; and the last block of a model with [CLS]."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffvit.kernels import native
from diffvit.models.vit import Block, Mlp, PatchEmbed


class FastPatchEmbed(PatchEmbed):
    """:class:`PatchEmbed` as one product of matrices: patches do not overlap."""

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches dim"]:
        """As :meth:`PatchEmbed.forward`."""
        self.check(images)
        side = self.patch_size
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.proj.weight.flatten(1), self.proj.bias)


class FastMlp(Mlp):
    """:class:`Mlp` with the bias inside the product and a compiled GELU, where these are usable."""

    def forward(self, x: Float[Tensor, "*lead dim"]) -> Float[Tensor, "*lead out"]:
        """As :meth:`Mlp.forward`."""
        return native.linear(self.fc2, native.gelu(native.linear(self.fc1, x)))


class FastBlock(Block):
    """:class:`Block` with each sum and the norm that follows in one pass, where that is usable."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """As :meth:`Block.forward`."""
        x, normed = native.add_and_norm(self.norm1, x)
        branch = self.drop_path(self.ls1(self.attn(normed)))
        x, normed = native.add_and_norm(self.norm2, x, branch)
        return x + self.drop_path(self.ls2(self.mlp(normed)))


class FastClsBlock(Block):
    """A last block of which the head reads [CLS] alone: only [CLS] attends, and only [CLS] comes out."""

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 1 dim"]:
        """The first token of :meth:`Block.forward`'s output."""
        x, normed = native.add_and_norm(self.norm1, x)
        branch = self.drop_path(self.ls1(self.attn(normed, 1)))
        x, normed = native.add_and_norm(self.norm2, x[:, :1], branch)
        return x + self.drop_path(self.ls2(self.mlp(normed)))
