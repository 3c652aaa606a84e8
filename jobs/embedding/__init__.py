"""The embed stage: from a source of images or precomputed vectors to a vector store.

`embed` runs the stage; the other modules list the source, prepare the model, fit the projection,
embed chunks on the cluster, and update a store after changes of its source. It may import
`jobs.cluster`, `jobs.config`, `jobs.runtime` and `retrieval`; the commands and the other stages may
import it.
"""
