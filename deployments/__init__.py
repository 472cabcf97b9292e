"""The Ray Serve deployments. One file per stage at the top; a stage with several files has a folder.

stitch/ runs the pipeline of an utterance and owns the sessions; ingress/ is the HTTP server; chat/ answers messages;
common/ has what all of them share. Stages never import one another: graph.py connects them through handles.
"""

from deployments.common.loopback import bind_replicas

bind_replicas()
