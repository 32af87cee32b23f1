"""Random crops and mirror images of a whole batch on its device, one draw for each image, no loop over images."""
import torch
from torch.nn import functional as F

AUGMENTATIONS = ("none", "standard")
MIRRORED = ("fashion-mnist", "cifar10", "cifar100")  # what is still what it was in a mirror; digits are not
DEFAULT = {"cifar10": "standard", "cifar100": "standard"}


def augment(images, dataset, generator):
    """Pad with zeros by an eighth of the height (4 of 32 pixels), crop to the size at a random place; mirror half of them.

    Args:
        images: (B, C, H, W).
        dataset: Its name; images are mirrored where that keeps their class.
        generator: Two numbers for each image, three with mirroring; on its own device.

    Source: He et al. (2016), CVPR, section 4.2.
    """
    batch, _, height, width = images.shape
    padding = height // 8

    def draw(bound):
        return torch.randint(bound, (batch, 1), generator=generator, device=generator.device).to(images.device)
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    if dataset in MIRRORED:
        columns = torch.where(draw(2) == 1, columns.flip(0), columns)
    rows, columns = rows + draw(2 * padding + 1), columns + draw(2 * padding + 1)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
