"""The embedded engine: serves a model and its adapters with text-generation-inference's API, in
one process on a laptop.

Run as ``python -m hubkit.local_engine``; everything else sees it as addresses only. Inside, a
request goes

    app → service → validation, templates → generation → engine (llama.cpp or transformers)

`engine_choice` says which engine a model gets and why. `repo` fetches a model at a commit and
`conversion` converts it, once per commit. Both engines implement one small protocol (`engine`).

**What differs from TGI 3.3.** An unknown adapter is an error (422), where TGI takes the base model
in silence. Log-probabilities are the model's own, before temperature and filters; the prompt's are
null. A stop sequence that ends in the middle of a token is recognised, and the text ends right
after it. Tools, regular-expression grammars, images, `suffix` and `watermark` are refused (422)
instead of served. A request that cannot start is answered with its status even where a stream was
asked for.

**When the same seed and the same request give the same text.** Always with the transformers engine
when one request runs at a time. With llama.cpp, when nothing else is computed at the same time and
the same part of the prompt comes from the cache: a batch of another size rounds differently. In
full precision (``--dtype f32``) that is below 0.01 in a log-probability and changes a text only at
a near tie; with Q8_0, whose kernels for one token and for many differ, it is up to about 0.1.

**Settings from the environment.** HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE as for any Hub client;
HUBKIT_ENDPOINT_TOKEN, if set, is the bearer token that clients must send."""
