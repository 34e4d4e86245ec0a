"""A client with nothing to train: it sends back what it got."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer; ``heavy`` does first what a client with a pretrained text model does."""
    if context.run_config["heavy"]:
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12)
        transformers.BertModel(config)
    content = RecordDict(
        {
            "arrays": message.content.array_records["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=message)
