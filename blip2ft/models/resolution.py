"""Position embeddings for another image size, written into the checkpoint."""

import torch
from torch import nn
from transformers import PreTrainedModel


def resize_image_input(model: PreTrainedModel, image_size: int) -> None:
    """Make `model` take square images of `image_size` pixels, in place.

    The patch positions (1, 1 + G*G, D) are interpolated bicubically to the new grid, the class
    token's position is kept, and the config is updated, so that the saved model loads at the new
    size with stock transformers. The same as the original's `interpolate_pos_embed`
    (LAVIS, models/eva_vit.py), which starts fine-tuning at 364 or 490 px from 224 px weights.

    Raises ValueError where `image_size` isn't a positive multiple of the patch size.
    """
    embeddings = model.vision_model.embeddings
    patch_size = embeddings.patch_size
    if image_size <= 0 or image_size % patch_size:
        below = max(image_size // patch_size, 1) * patch_size
        raise ValueError(
            f"image size {image_size} doesn't divide into patches of {patch_size} pixels; "
            f"the nearest sizes that do are {below} and {below + patch_size}"
        )
    if image_size == embeddings.image_size:
        return
    old = embeddings.position_embedding
    grid = image_size // patch_size
    old_grid = round((old.shape[1] - 1) ** 0.5)
    # fp32 always: bicubic weights in bf16 would move every position by up to 1 %
    patches = old[:, 1:].detach().float().reshape(1, old_grid, old_grid, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(
        patches, size=(grid, grid), mode="bicubic", align_corners=False
    )
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2).to(old.dtype)
    new = torch.cat([old[:, :1].detach(), patches], dim=1)
    embeddings.position_embedding = nn.Parameter(new, requires_grad=old.requires_grad)
    embeddings.image_size = image_size
    embeddings.num_patches = grid * grid
    embeddings.num_positions = grid * grid + 1
    # the embeddings' config is the model's vision config: one object
    model.config.vision_config.image_size = image_size
    embeddings.config.image_size = image_size
