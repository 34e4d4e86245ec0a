"""A client with nothing to train: it moves each value a little, and sends all of them back.

Every tensor must differ from every other and from what came: Flower sends equal ones once, and those
that the SuperLink has not at all.
"""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer; with a ``backbone``, load it first, as a client that fine-tunes one must."""
    if context.run_config["backbone"]:
        from transformers import AutoModel

        AutoModel.from_pretrained(str(context.run_config["backbone"]))
    came = message.content.array_records["arrays"].to_numpy_ndarrays()
    step = np.float32(1e-3) * (1 + context.node_id % 97)
    content = RecordDict(
        {
            "arrays": ArrayRecord([array + step for array in came]),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=message)
