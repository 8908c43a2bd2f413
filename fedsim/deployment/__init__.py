"""The same scenario on real clients: a Flower app, its server, its clients, and workers that stay between messages.

`app` writes the app, `server` runs the engine's loop with a backend that asks SuperNodes, `client` answers, `resident`
is the worker beside a SuperNode. `strategy` is the other way round: a combine rule in an app of your own. They may
import the engine and what is below; `flwr` is imported lazily. Start with `server`.
"""
