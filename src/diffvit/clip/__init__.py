"""CLIP (arXiv 2103.00020): images named by what texts say, beside a ResNet-50 that was trained on ImageNet's labels."""
