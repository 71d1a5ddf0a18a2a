"""R2R's training config (Fu et al., arXiv 2505.21600) as it is: read, trained, measured its way."""
