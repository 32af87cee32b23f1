"""Networks made of stages: the stage itself, its fields, the paper's networks, and those read from torchvision."""
