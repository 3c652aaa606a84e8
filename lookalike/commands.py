"""The commands as functions, with the options of the command line as arguments.

Generated from `jobs/config/options.py` and `jobs/cli.py` by `make docs`. A default of None is the
one that the description states.
"""

from __future__ import annotations

from typing import Literal

from lookalike.input_types import Backbone, Ids, Images, ImagesOrVectors, Labels, Path, Vectors
from lookalike.result import Result
from lookalike.run_command import run_command

# ruff: noqa: A002 - names of options


def run(
    *,
    gallery: Images,
    output: Path,
    queries: Images,
    top_k: int = 10,
    recall: float | str = 0.95,
    nprobe: int | None = None,
    filter: str | None = None,
    exclude_self: bool = False,
    min_score: float | None = None,
    calibration: Path | None = None,
    min_probability: float | None = None,
    rerank: str | None = None,
    format: str | None = None,
    temp_dir: Path | None = None,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    max_index_memory: int | str = "4G",
    rows_per_shard: int | None = None,
    index_factory: str | None = None,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbone: Backbone = "resnet50",
    weights: Path | None = None,
    bundle: Path | None = None,
    recipe: Literal["default", "original", "plain"] = "default",
    pooling: Literal["avg", "max", "gem"] | None = None,
    normalize: bool = True,
    image_size: int | None = None,
    resize: Literal["crop", "squash", "pad"] | None = None,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    python_path: Path | None = None,
    pca: int | None = None,
    augment_inference: Literal["none", "flip"] | None = None,
    seed: int = 0,
    embedding_dtype: Literal["auto", "float16", "float32"] = "auto",
    all_measures: bool = False,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
) -> Result:
    """Embed, index, rank, evaluate and report in one command.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        gallery: Images to search in: a folder, a list file (.txt, .csv, .parquet), .tar archives
            or Parquet files; a path or URI.
        output: Folder or URI to write to; created if absent.
        queries: Images to search for, in the same forms as gallery.
        top_k: Number of matches per query.
        recall: Share of the exact top-k to find, 0 to 1, or exact; a lower measured recall ends
            with exit code 5.
        nprobe: Inverted lists searched per query; the recall is then measured but not required;
            default: chosen for each query, as many as recall needs.
        filter: SQL condition on gallery images: "label = 'cat' and width > 200".
        exclude_self: Exclude the query image itself: its own row when a store is searched against
            itself, else images with the same bytes.
        min_score: Lowest score of a match; for l2 the largest distance; default: no limit.
        calibration: File of evaluate calibrate, made with the same network and metric: matches
            get a probability of being right.
        min_probability: Lowest probability of a match, by calibration; default: no limit.
        rerank: Method that improves the ranking from the first N matches: k-reciprocal[:N] or
            augment[:N] (cosine only; N is 200 by default) order them anew, expand[:N[,ALPHA]] (5,
            3) adds them to the query and searches again; scores then differ from similarities.
        format: Also write the matches in these formats, comma-separated: jsonl, csv, trec,
            submission, html, png.
        temp_dir: Local folder on each node for the shard being processed; default: the node's
            temporary folder.
        metric: Similarity of vectors: cosine, inner product (ip) or Euclidean distance (l2).
        max_index_memory: Memory of one task for a shard and a block of queries.
        rows_per_shard: Vectors per index shard; default: planned from max_index_memory.
        index_factory: Kind of the index as FAISS writes it: IVFn,Flat or IVFn,SQfp16 (the
            vectors), IVFn,SQ8 or IVFn,PQmx4fs (lossy codes, rescored by the stored vectors; n is
            the number of lists); default: the vectors.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list or Parquet file with the image ids; default: image_id (or id),
            else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbone: Torchvision model, timm:NAME, onnx:FILE or scratch (the small network of train;
            or your own, python:MODULE:FACTORY).
        weights: State dict (.safetensors or .pth; path or URI), or random; default: the published
            weights.
        bundle: Bundle to use instead of a backbone: written by train, or taken from a store.
        recipe: Defaults of resize, pooling and pca: default (squash, gem, 256; the best on
            photos), original (squash, max, 500; the student project's) or plain (the weights'
            own, avg, none; that of published figures); of a bundle only pca, if train wrote it.
        pooling: How the feature map is pooled into one vector; default: that of recipe; avg, the
            network's own output, where it ends in no map of rectified features.
        normalize: Scale vectors to unit length before storing them.
        image_size: Side of the square input in pixels; default: that of the weights.
        resize: How an image becomes square: crop scales the shorter side and cuts out the centre,
            squash scales both sides, pad scales the longer side and fills; default: that of
            recipe.
        mean: Mean of the input per channel, R,G,B from 0 to 1; default: that of the weights.
        std: Standard deviation of the input per channel, R,G,B; default: that of the weights.
        interpolation: Filter that resizes images; default: that of the weights.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        pca: Dimensions after a PCA (fitted on a sample of the gallery), or 0 for none; default:
            that of recipe; it needs 1.2 images per dimension.
        augment_inference: Images whose vectors are averaged: flip adds the mirror image and
            doubles the time of the network; default: none.
        seed: Seed of all random choices.
        embedding_dtype: Number type of stored vectors; auto: float16.
        all_measures: Print every measure (docs/measures.md); json always contains all of them.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace the stages of an output that were made with other settings.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("run", locals())


def embed(
    *,
    output: Path,
    input: ImagesOrVectors,
    embedding_column: str | None = None,
    ids: Ids | None = None,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbone: Backbone = "resnet50",
    weights: Path | None = None,
    bundle: Path | None = None,
    recipe: Literal["default", "original", "plain"] = "default",
    pooling: Literal["avg", "max", "gem"] | None = None,
    normalize: bool = True,
    image_size: int | None = None,
    resize: Literal["crop", "squash", "pad"] | None = None,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    python_path: Path | None = None,
    pca: int | None = None,
    augment_inference: Literal["none", "flip"] | None = None,
    seed: int = 0,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
    embedding_dtype: Literal["auto", "float16", "float32"] = "auto",
    compact: bool = False,
) -> Result:
    """Embed images into a store of vectors.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        output: Folder or URI to write to; created if absent.
        input: Images: a folder, a list file (.txt, .csv, .parquet), .tar archives or Parquet
            files; or precomputed vectors (Parquet, .npy).
        embedding_column: Parquet column of vectors; default: embedding, or the only one.
        ids: File with the ids of the vectors in a .npy file (.txt, .npy, .csv or .parquet);
            default: row numbers.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list, Parquet or ids file with the image ids; default: image_id (or
            id), else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbone: Torchvision model, timm:NAME, onnx:FILE or scratch (the small network of train;
            or your own, python:MODULE:FACTORY).
        weights: State dict (.safetensors or .pth; path or URI), or random; default: the published
            weights.
        bundle: Bundle to use instead of a backbone: written by train, or taken from a store.
        recipe: Defaults of resize, pooling and pca: default (squash, gem, 256; the best on
            photos), original (squash, max, 500; the student project's) or plain (the weights'
            own, avg, none; that of published figures); of a bundle only pca, if train wrote it.
        pooling: How the feature map is pooled into one vector; default: that of recipe; avg, the
            network's own output, where it ends in no map of rectified features.
        normalize: Scale vectors to unit length before storing them.
        image_size: Side of the square input in pixels; default: that of the weights.
        resize: How an image becomes square: crop scales the shorter side and cuts out the centre,
            squash scales both sides, pad scales the longer side and fills; default: that of
            recipe.
        mean: Mean of the input per channel, R,G,B from 0 to 1; default: that of the weights.
        std: Standard deviation of the input per channel, R,G,B; default: that of the weights.
        interpolation: Filter that resizes images; default: that of the weights.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        pca: Dimensions after a PCA (fitted on a sample of the gallery), or 0 for none; default:
            that of recipe; it needs 1.2 images per dimension.
        augment_inference: Images whose vectors are averaged: flip adds the mirror image and
            doubles the time of the network; default: none.
        seed: Seed of all random choices.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace an output that was made with other settings.
        embedding_dtype: Number type of stored vectors; auto: float16 for images, unchanged for
            precomputed vectors (float64 and integers become float32).
        compact: Rewrite a store of several segments as one; rows are numbered anew.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("embed", locals())


def index(
    *,
    output: Path,
    embeddings: Vectors,
    embedding_column: str | None = None,
    ids: Ids | None = None,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    max_index_memory: int | str = "4G",
    rows_per_shard: int | None = None,
    index_factory: str | None = None,
    temp_dir: Path | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
    embedding_dtype: Literal["auto", "float16", "float32"] = "auto",
    export_faiss: Path | None = None,
    seed: int = 0,
) -> Result:
    """Build a sharded IVF index from a store.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        output: Folder or URI to write to; created if absent.
        embeddings: Store written by embed, or precomputed vectors (Parquet, .npy).
        embedding_column: Parquet column of vectors; default: embedding, or the only one.
        ids: File with the ids of the vectors in a .npy file (.txt, .npy, .csv or .parquet);
            default: row numbers.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list, Parquet or ids file with the image ids; default: image_id (or
            id), else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        metric: Similarity of vectors: cosine, inner product (ip) or Euclidean distance (l2).
        max_index_memory: Memory of one task for a shard and a block of queries.
        rows_per_shard: Vectors per index shard; default: planned from max_index_memory.
        index_factory: Kind of the index as FAISS writes it: IVFn,Flat or IVFn,SQfp16 (the
            vectors), IVFn,SQ8 or IVFn,PQmx4fs (lossy codes, rescored by the stored vectors; n is
            the number of lists); default: the vectors.
        temp_dir: Local folder on each node for the shard being processed; default: the node's
            temporary folder.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace an output that was made with other settings.
        embedding_dtype: Number type of stored vectors; auto: float16 for images, unchanged for
            precomputed vectors (float64 and integers become float32).
        export_faiss: Also write all live rows as one FAISS index to this local file.
        seed: Seed of all random choices.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("index", locals())


def rank(
    *,
    output: Path,
    index: Path,
    queries: ImagesOrVectors,
    embedding_column: str | None = None,
    ids: Ids | None = None,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbone: Backbone | None = None,
    python_path: Path | None = None,
    top_k: int = 10,
    recall: float | str = 0.95,
    nprobe: int | None = None,
    filter: str | None = None,
    exclude_self: bool = False,
    min_score: float | None = None,
    calibration: Path | None = None,
    min_probability: float | None = None,
    rerank: str | None = None,
    format: str | None = None,
    temp_dir: Path | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
    unique_pairs: bool = False,
    seed: int = 0,
) -> Result:
    """Find the most similar gallery images of each query.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        output: Folder or URI to write to; created if absent.
        index: Index written by index.
        queries: Images to search for, in the same forms as embed input; or a store, or
            precomputed vectors (Parquet, .npy).
        embedding_column: Parquet column of vectors; default: embedding, or the only one.
        ids: File with the ids of the vectors in a .npy file (.txt, .npy, .csv or .parquet);
            default: row numbers.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list, Parquet or ids file with the image ids; default: image_id (or
            id), else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbone: python:MODULE:FACTORY, if the images were embedded with it: its code is never
            taken from an output.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        top_k: Number of matches per query.
        recall: Share of the exact top-k to find, 0 to 1, or exact; a lower measured recall ends
            with exit code 5.
        nprobe: Inverted lists searched per query; the recall is then measured but not required;
            default: chosen for each query, as many as recall needs.
        filter: SQL condition on gallery images: "label = 'cat' and width > 200".
        exclude_self: Exclude the query image itself: its own row when a store is searched against
            itself, else images with the same bytes.
        min_score: Lowest score of a match; for l2 the largest distance; default: no limit.
        calibration: File of evaluate calibrate, made with the same network and metric: matches
            get a probability of being right.
        min_probability: Lowest probability of a match, by calibration; default: no limit.
        rerank: Method that improves the ranking from the first N matches: k-reciprocal[:N] or
            augment[:N] (cosine only; N is 200 by default) order them anew, expand[:N[,ALPHA]] (5,
            3) adds them to the query and searches again; scores then differ from similarities.
        format: Also write the matches in these formats, comma-separated: jsonl, csv, trec,
            submission, html, png.
        temp_dir: Local folder on each node for the shard being processed; default: the node's
            temporary folder.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace an output that was made with other settings.
        unique_pairs: Also write each pair of duplicates once, closest first; with min_score also
            the groups of duplicates in the gallery, or the leaks if queries is another set.
        seed: Seed of all random choices.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("rank", locals())


def evaluate(
    *,
    matches: Path,
    labels: Labels | None = None,
    qrels: Path | None = None,
    junk_grade: int = -1,
    intervals_over: Literal["queries", "classes"] = "queries",
    cutoffs: str = "10",
    all_measures: bool = False,
    compare: Path | None = None,
    exact_matches: Path | None = None,
    fail_below: str | None = None,
    per_query: Path | None = None,
    calibrate: Path | None = None,
) -> Result:
    """Measure the quality of matches against labels.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        matches: Matches written by rank.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            those in the matches.
        qrels: TREC file of relevant images (query_id 0 image_id grade), used instead of labels.
        junk_grade: Grade in qrels that marks images to ignore, as if they were not ranked.
        intervals_over: What the 95 % intervals generalise to: other queries of these classes, or
            other classes (for a backbone that was not trained on them).
        cutoffs: Cutoffs K,K,... (of P@K, R@K, mAP@K, AP@K, nDCG@K and Success@K).
        all_measures: Print every measure (docs/measures.md); json always contains all of them.
        compare: Other matches of the same queries: report the paired difference and the queries
            that changed most.
        exact_matches: The same ranking made with recall exact: split the loss of quality between
            backbone and index.
        fail_below: Lower bounds MEASURE=BOUND,... (such as map=0.6,top1=0.8 or AP=0.6); a measure
            below its bound ends with exit code 5.
        per_query: Also write one line per query to this .csv or .parquet file.
        calibrate: Also learn how likely matches are right (from their scores and these labels; a
            .json file for calibration).

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("evaluate", locals())


def report(
    *,
    matches: Path,
    output: Path,
    labels: Labels | None = None,
    qrels: Path | None = None,
    junk_grade: int = -1,
    intervals_over: Literal["queries", "classes"] = "queries",
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    format: str | None = None,
    compare: Path | None = None,
    title: str = "lookalike",
    max_queries: int = 100000,
    seed: int = 0,
) -> Result:
    """Write an HTML report of matches with pictures.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        matches: Matches written by rank.
        output: HTML page to write, for example report.html.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            those in the matches.
        qrels: TREC file of relevant images (query_id 0 image_id grade), used instead of labels.
        junk_grade: Grade in qrels that marks images to ignore, as if they were not ranked.
        intervals_over: What the 95 % intervals generalise to: other queries of these classes, or
            other classes (for a backbone that was not trained on them).
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        format: What to write, comma-separated: html, png (pictures, in NAME_pictures/); default:
            html.
        compare: With png: other matches of the same queries, drawn beside these as the earlier
            ranking.
        title: Heading of the page.
        max_queries: Maximum number of queries in the report (failed ones first); run and rank
            format html: 1000.
        seed: Seed of all random choices.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("report", locals())


def train(
    *,
    data: Images,
    output: Path,
    backbone: Backbone = "scratch",
    weights: Path | None = None,
    python_path: Path | None = None,
    recipe: Literal["default", "original", "plain"] = "default",
    pooling: Literal["avg", "max", "gem"] | None = None,
    image_size: int | None = None,
    resize: Literal["crop", "squash", "pad"] | None = None,
    unfreeze: str = "all",
    objective: Literal[
        "cross-entropy", "arcface", "supcon", "proxy-anchor", "triplet"
    ] = "cross-entropy",
    epochs: int = 30,
    patience: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int = 16,
    learning_rate: float = 0.001,
    backbone_lr_scale: float = 0.1,
    schedule: Literal["cosine", "plateau"] = "cosine",
    augment: str = "flip,crop,zoom,rotate,shear,colour",
    exclude_classes: str | None = None,
    validation_fraction: float = 0.3,
    split_by: Literal["image", "class"] = "image",
    cache: Path | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
    labels: Labels | None = None,
    max_pixels: int = 178956970,
    seed: int = 0,
) -> Result:
    """Train a bundle on labelled images.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        data: Labelled images: one subfolder per class, or any input with labels.
        output: Folder or URI to write to; created if absent.
        backbone: Torchvision model, timm:NAME, onnx:FILE or scratch (the small network of train;
            or your own, python:MODULE:FACTORY).
        weights: State dict (.safetensors or .pth; path or URI), or random; default: random for
            scratch, else published.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        recipe: Defaults of resize and pooling: default (squash, gem), original (squash, max) or
            plain (the weights' own, avg).
        pooling: How the feature map is pooled into one vector; default: that of recipe; avg, the
            network's own output, where it ends in no map of rectified features.
        image_size: Side of the square input in pixels; default: that of the weights.
        resize: How an image becomes square: crop scales the shorter side and cuts out the centre,
            squash scales both sides, pad scales the longer side and fills; default: that of
            recipe.
        unfreeze: Layers of a pretrained backbone that are trained: none, all or last:N.
        objective: Training loss; all but cross-entropy need lookalike[metric].
        epochs: Maximum number of passes over the training images.
        patience: Stop after this many epochs without improvement; default: never.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per training step.
        learning_rate: Peak learning rate of AdamW.
        backbone_lr_scale: Learning rate of a pretrained backbone, relative to learning_rate.
        schedule: Learning-rate schedule; cosine: decay to zero; plateau: multiply by 0.85 after
            two epochs without improvement.
        augment: Random augmentations (of the training images; comma-separated, or none).
        exclude_classes: Comma-separated classes that are not used at all; default: none.
        validation_fraction: Share of the images, or classes (split_by), held out to choose the
            best epoch.
        split_by: Hold out images of each class, or whole classes.
        cache: Local folder that keeps decoded images for later training runs; default: none.
        workers: Number of processes that train one network together; default: 1.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace an output that was made with other settings.
        labels: Labels in a CSV or Parquet file (image_id, label); default: the parent folder's
            name.
        max_pixels: Largest width x height, read from the header; larger images are left out and
            reported.
        seed: Seed of all random choices.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("train", locals())


def predict(
    *,
    output: Path,
    input: Images,
    bundle: Path,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbone: Backbone | None = None,
    python_path: Path | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    overwrite: bool = False,
) -> Result:
    """Classify images with a bundle written by train.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        output: Folder or URI to write to; created if absent.
        input: Images: a folder, a list file (.txt, .csv, .parquet), .tar archives or Parquet
            files; or precomputed vectors (Parquet, .npy).
        bundle: Bundle written by train, with its classes.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list, Parquet or ids file with the image ids; default: image_id (or
            id), else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbone: python:MODULE:FACTORY, if the images were embedded with it: its code is never
            taken from an output.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        overwrite: Replace an output that was made with other settings.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("predict", locals())


def compare(
    *,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbones: str | None = None,
    weights: Path | None = None,
    bundle: Path | None = None,
    python_path: Path | None = None,
    recipe: Literal["default", "original", "plain"] = "default",
    image_size: int | None = None,
    resize: Literal["crop", "squash", "pad"] | None = None,
    augment_inference: Literal["none", "flip"] | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    data: Images | None = None,
    output: Path | None = None,
    pca: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Result:
    """Compare backbones on labelled images, or list them.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list, Parquet or ids file with the image ids; default: image_id (or
            id), else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbones: Comma-separated backbones to list or compare; all: every torchvision model, and
            scratch with weights.
        weights: Folder of state dicts (NAME.safetensors or NAME.pth, NAME without timm:), or
            random; default: the published weights.
        bundle: Comma-separated trained bundles to compare as well.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        recipe: Defaults of resize and pca: default (squash, 256), original (squash, 500) or plain
            (the weights' own, none); every pooling is compared.
        image_size: Side of the square input in pixels; default: that of the weights.
        resize: How an image becomes square: crop scales the shorter side and cuts out the centre,
            squash scales both sides, pad scales the longer side and fills; default: that of
            recipe.
        augment_inference: Images whose vectors are averaged: flip adds the mirror image and
            doubles the time of the network; default: none.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        data: Labelled images (in the same forms as embed input); default: only list the
            backbones.
        output: Folder or URI to write to; created if absent.
        pca: Also measure vectors of N dimensions, or 0 (by a PCA fitted on the compared images);
            default: that of recipe.
        seed: Seed of all random choices.
        overwrite: Replace an output that was made with other settings; stores that fit are kept.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("compare", locals())


def verify(
    path: Path,
    *,
    measure_recall: bool = False,
) -> Result:
    """Check that an output is complete and unaltered.

    Args:
        path: Output to check.
        measure_recall: Measure the recall curve of an index again and require the same result.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("verify", locals())


def plan(
    *,
    gallery: Images,
    top_k: int = 10,
    recall: float | str = 0.95,
    nprobe: int | None = None,
    filter: str | None = None,
    exclude_self: bool = False,
    min_score: float | None = None,
    calibration: Path | None = None,
    min_probability: float | None = None,
    rerank: str | None = None,
    format: str | None = None,
    temp_dir: Path | None = None,
    metric: Literal["cosine", "ip", "l2"] = "cosine",
    max_index_memory: int | str = "4G",
    rows_per_shard: int | None = None,
    index_factory: str | None = None,
    labels: Labels | None = None,
    id_column: str | None = None,
    chunk_rows: int | None = None,
    limit: int | None = None,
    max_error_rate: float = 0.01,
    retry_failed: bool = False,
    image_column: str | None = None,
    box_columns: str | None = None,
    box_units: Literal["pixels", "relative"] = "pixels",
    max_pixels: int = 178956970,
    engine: Literal["openvino", "torch"] | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    batch_size: int | None = None,
    backbone: Backbone = "resnet50",
    weights: Path | None = None,
    bundle: Path | None = None,
    recipe: Literal["default", "original", "plain"] = "default",
    pooling: Literal["avg", "max", "gem"] | None = None,
    normalize: bool = True,
    image_size: int | None = None,
    resize: Literal["crop", "squash", "pad"] | None = None,
    mean: str | None = None,
    std: str | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    python_path: Path | None = None,
    pca: int | None = None,
    augment_inference: Literal["none", "flip"] | None = None,
    seed: int = 0,
    embedding_dtype: Literal["auto", "float16", "float32"] = "auto",
    all_measures: bool = False,
    workers: int | None = None,
    ray_address: str | None = None,
    gpus_per_worker: float = 1.0,
    decoding: Literal["auto", "fused", "separate"] = "auto",
    queries: Images | None = None,
    output: Path | None = None,
    cluster: str | None = None,
    sample: int = 200,
) -> Result:
    """Estimate the time, memory and disk space of a run.

    Data from memory is written to files in the hidden folder .OUTPUT.inputs beside the output, or
    in a temporary folder without an output.

    Args:
        gallery: Images to search in: a folder, a list file (.txt, .csv, .parquet), .tar archives
            or Parquet files; a path or URI.
        top_k: Number of matches per query.
        recall: Share of the exact top-k to find, 0 to 1, or exact; a lower measured recall ends
            with exit code 5.
        nprobe: Inverted lists searched per query; the recall is then measured but not required;
            default: chosen for each query, as many as recall needs.
        filter: SQL condition on gallery images: "label = 'cat' and width > 200".
        exclude_self: Exclude the query image itself: its own row when a store is searched against
            itself, else images with the same bytes.
        min_score: Lowest score of a match; for l2 the largest distance; default: no limit.
        calibration: File of evaluate calibrate, made with the same network and metric: matches
            get a probability of being right.
        min_probability: Lowest probability of a match, by calibration; default: no limit.
        rerank: Method that improves the ranking from the first N matches: k-reciprocal[:N] or
            augment[:N] (cosine only; N is 200 by default) order them anew, expand[:N[,ALPHA]] (5,
            3) adds them to the query and searches again; scores then differ from similarities.
        format: Also write the matches in these formats, comma-separated: jsonl, csv, trec,
            submission, html, png.
        temp_dir: Local folder on each node for the shard being processed; default: the node's
            temporary folder.
        metric: Similarity of vectors: cosine, inner product (ip) or Euclidean distance (l2).
        max_index_memory: Memory of one task for a shard and a block of queries.
        rows_per_shard: Vectors per index shard; default: planned from max_index_memory.
        index_factory: Kind of the index as FAISS writes it: IVFn,Flat or IVFn,SQfp16 (the
            vectors), IVFn,SQ8 or IVFn,PQmx4fs (lossy codes, rescored by the stored vectors; n is
            the number of lists); default: the vectors.
        labels: Labels in a CSV or Parquet file (image_id, label and optionally split); default:
            the parent folder's name.
        id_column: Column of a list or Parquet file with the image ids; default: image_id (or id),
            else the path or position.
        chunk_rows: Images per part file; default: 256 to 4096, by the number of images.
        limit: Use only the first N images; default: all.
        max_error_rate: Share of images that may fail, 0 to 1; more failures end with exit code 4.
        retry_failed: Try the images in the ledger again; a recovered image keeps its row.
        image_column: Column of image paths or bytes (in a list or Parquet file); default:
            recognised by its name.
        box_columns: Columns of a list or Parquet file with a box per row, such as
            x,y,width,height (or one column of lists of them): each row is the part of its upright
            image in the box.
        box_units: Unit of box_columns: pixels, or relative to the image's width and height (0 to
            1, as MegaDetector writes them).
        max_pixels: Largest width x height, read from the header; larger images go to the ledger.
        engine: Library that runs the network; default: openvino on CPUs, torch on GPUs.
        precision: Arithmetic of the network; default: fp32 on CPUs, bf16 on GPUs.
        device: Where the network runs; default: cuda if there is a GPU, else cpu.
        batch_size: Images per forward pass; default: 2 on CPUs, 256 on GPUs.
        backbone: Torchvision model, timm:NAME, onnx:FILE or scratch (the small network of train;
            or your own, python:MODULE:FACTORY).
        weights: State dict (.safetensors or .pth; path or URI), or random; default: the published
            weights.
        bundle: Bundle to use instead of a backbone: written by train, or taken from a store.
        recipe: Defaults of resize, pooling and pca: default (squash, gem, 256; the best on
            photos), original (squash, max, 500; the student project's) or plain (the weights'
            own, avg, none; that of published figures); of a bundle only pca, if train wrote it.
        pooling: How the feature map is pooled into one vector; default: that of recipe; avg, the
            network's own output, where it ends in no map of rectified features.
        normalize: Scale vectors to unit length before storing them.
        image_size: Side of the square input in pixels; default: that of the weights.
        resize: How an image becomes square: crop scales the shorter side and cuts out the centre,
            squash scales both sides, pad scales the longer side and fills; default: that of
            recipe.
        mean: Mean of the input per channel, R,G,B from 0 to 1; default: that of the weights.
        std: Standard deviation of the input per channel, R,G,B; default: that of the weights.
        interpolation: Filter that resizes images; default: that of the weights.
        python_path: Folder with the module of backbone python:... (searched after installed
            packages).
        pca: Dimensions after a PCA (fitted on a sample of the gallery), or 0 for none; default:
            that of recipe; it needs 1.2 images per dimension.
        augment_inference: Images whose vectors are averaged: flip adds the mirror image and
            doubles the time of the network; default: none.
        seed: Seed of all random choices.
        embedding_dtype: Number type of stored vectors; auto: float16.
        all_measures: Print every measure (docs/measures.md); json always contains all of them.
        workers: Number of workers (the maximum on an autoscaling cluster); default: the CPUs at
            the start.
        ray_address: Running Ray cluster: auto, host:port, or http://HEAD:8265 to submit the
            command as a job; default: $RAY_ADDRESS, else this machine.
        gpus_per_worker: Share of a GPU per worker; 0.5 lets two workers use one GPU.
        decoding: Where images are decoded: by the workers that embed them (fused), or by tasks on
            all nodes (separate); auto: separate if the workers use GPUs and there are nodes
            without.
        queries: Images to search for, in the same forms as gallery.
        output: Folder or URI that the job will write to; the measurement writes there too, and
            removes what it wrote.
        cluster: Cluster, such as 20x(16cpu,1gpu)+4x(32cpu); default: the current one.
        sample: Number of images embedded to measure the speed.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("plan", locals())


def demo(
    *,
    output: Path,
    all_measures: bool = False,
    seed: int = 0,
) -> Result:
    """Run every step on generated sample images.

    Args:
        output: Folder or URI to write to; created if absent.
        all_measures: Print every measure (docs/measures.md); json always contains all of them.
        seed: Seed of all random choices.

    Raises:
        LookalikeError: As the command line reports it; `exit_code` is its exit code.
    """
    return run_command("demo", locals())
