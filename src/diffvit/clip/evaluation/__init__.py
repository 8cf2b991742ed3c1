"""CLIP, and the ImageNet-supervised ResNet-50 beside it, on labelled pictures: folders, ImageNet's layout, CIFAR-10."""
