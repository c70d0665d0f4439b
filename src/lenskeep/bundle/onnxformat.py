"""The ONNX format, IR version 13, as tables: messages as they stand on the wire, and types of attributes.

Each line of a message is a field: number, name, kind; `*` repeats. Names and numbers are those of
onnx.proto; a test compares them with the onnx package. FunctionProto, TrainingInfoProto and
TensorProto.Segment are named but not described, because a model that holds one is refused.
"""

from __future__ import annotations

from lenskeep.bundle.protowire import layouts

IR_VERSION = 13

LAYOUTS = layouts(
    {
        "ModelProto": """
            1 ir_version int64
            2 producer_name text
            3 producer_version text
            4 domain text
            5 model_version int64
            6 doc_string text
            7 graph GraphProto
            8 opset_import OperatorSetIdProto*
            14 metadata_props StringStringEntryProto*
            20 training_info TrainingInfoProto*
            25 functions FunctionProto*
            26 configuration DeviceConfigurationProto*
        """,
        "OperatorSetIdProto": """
            1 domain text
            2 version int64
        """,
        "StringStringEntryProto": """
            1 key text
            2 value text
        """,
        "GraphProto": """
            1 node NodeProto*
            2 name text
            5 initializer TensorProto*
            10 doc_string text
            11 input ValueInfoProto*
            12 output ValueInfoProto*
            13 value_info ValueInfoProto*
            14 quantization_annotation TensorAnnotation*
            15 sparse_initializer SparseTensorProto*
            16 metadata_props StringStringEntryProto*
        """,
        "NodeProto": """
            1 input text*
            2 output text*
            3 name text
            4 op_type text
            5 attribute AttributeProto*
            6 doc_string text
            7 domain text
            8 overload text
            9 metadata_props StringStringEntryProto*
            10 device_configurations NodeDeviceConfigurationProto*
        """,
        "AttributeProto": """
            1 name text
            2 f float
            3 i int64
            4 s bytes
            5 t TensorProto
            6 g GraphProto
            7 floats float*
            8 ints int64*
            9 strings bytes*
            10 tensors TensorProto*
            11 graphs GraphProto*
            13 doc_string text
            14 tp TypeProto
            15 type_protos TypeProto*
            20 type enum
            21 ref_attr_name text
            22 sparse_tensor SparseTensorProto
            23 sparse_tensors SparseTensorProto*
        """,
        "ValueInfoProto": """
            1 name text
            2 type TypeProto
            3 doc_string text
            4 metadata_props StringStringEntryProto*
        """,
        "TypeProto": """
            1 tensor_type TypeProto.Tensor
            4 sequence_type TypeProto.Sequence
            5 map_type TypeProto.Map
            6 denotation text
            7 opaque_type TypeProto.Opaque
            8 sparse_tensor_type TypeProto.SparseTensor
            9 optional_type TypeProto.Optional
        """,
        "TypeProto.Tensor": """
            1 elem_type int32
            2 shape TensorShapeProto
        """,
        "TypeProto.SparseTensor": """
            1 elem_type int32
            2 shape TensorShapeProto
        """,
        "TypeProto.Sequence": """
            1 elem_type TypeProto
        """,
        "TypeProto.Map": """
            1 key_type int32
            2 value_type TypeProto
        """,
        "TypeProto.Optional": """
            1 elem_type TypeProto
        """,
        "TypeProto.Opaque": """
            1 domain text
            2 name text
        """,
        "TensorShapeProto": """
            1 dim TensorShapeProto.Dimension*
        """,
        "TensorShapeProto.Dimension": """
            1 dim_value int64
            2 dim_param text
            3 denotation text
        """,
        "TensorProto": """
            1 dims dim*
            2 data_type int32
            3 segment TensorProto.Segment
            4 float_data float*
            5 int32_data int32*
            6 string_data bytes*
            7 int64_data int64*
            8 name text
            9 raw_data bytes
            10 double_data double*
            11 uint64_data uint64*
            12 doc_string text
            13 external_data StringStringEntryProto*
            14 data_location enum
            16 metadata_props StringStringEntryProto*
        """,
        "SparseTensorProto": """
            1 values TensorProto
            2 indices TensorProto
            3 dims dim*
        """,
        "TensorAnnotation": """
            1 tensor_name text
            2 quant_parameter_tensor_names StringStringEntryProto*
        """,
        "DeviceConfigurationProto": """
            1 name text
            2 num_devices int32
            3 device text*
        """,
        "NodeDeviceConfigurationProto": """
            1 configuration_id text
            2 sharding_spec ShardingSpecProto*
            3 pipeline_stage int32
        """,
        "ShardingSpecProto": """
            1 tensor_name text
            2 device int64*
            3 index_to_device_group_map IntIntListEntryProto*
            4 sharded_dim ShardedDimProto*
        """,
        "IntIntListEntryProto": """
            1 key int64
            2 value int64*
        """,
        "ShardedDimProto": """
            1 axis int64
            2 simple_sharding SimpleShardedDimProto*
        """,
        "SimpleShardedDimProto": """
            1 dim_value int64
            2 dim_param text
            3 num_shards int64
        """,
    }
)

ATTRIBUTE_FIELDS = {  # AttributeProto.type -> the field that holds the value
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
