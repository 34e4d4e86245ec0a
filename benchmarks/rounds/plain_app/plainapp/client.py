"""A client with nothing to train: it sends back what it got."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer; with a ``backbone``, load it first, as a client that fine-tunes one must."""
    if context.run_config["backbone"]:
        from transformers import AutoModel

        AutoModel.from_pretrained(str(context.run_config["backbone"]))
    content = RecordDict(
        {
            "arrays": message.content.array_records["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=message)
