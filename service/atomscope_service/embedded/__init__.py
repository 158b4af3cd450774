"""The whole service on one machine: `atomscope up` and the processes it looks after."""
