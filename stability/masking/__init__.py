"""Whether robustness is real or gradients are masked: the audit, its checks, and the cold judge."""
