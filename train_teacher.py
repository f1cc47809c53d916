"""Fine-tune a network of torchvision or timm: the teacher, or the network to compress.

    python train_teacher.py --teacher resnet50
    python train_teacher.py --teacher timm/mobilenetv4_conv_small

reads    the images of --dataset, and ImageNet weights
writes   weights/teacher_resnet50_<top-1>.pt, and its log and curves beside it
"""

from common.cli import launch, options
from common.cli.parser import Parser


def main(args):
    # imported here, so that --help does not load torch
    from common.compression.distillation import cross_entropy
    from common.stage import Stage

    # model, data
    stage = Stage("teacher", args, arch=args.teacher)
    model = stage.model
    if finished := stage.begin(model):
        return finished

    # fine-tuning
    model, history = stage.fit(model, cross_entropy)

    # test, save
    score = stage.test(model)
    return stage.save(
        model, score, history, next_command="train_student.py --teacher {path.name} --student resnet18"
    )


def parse_args(argv=None):
    parser = Parser(__doc__, __file__)
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher", required=True, metavar="ARCH", help=options.ARCHITECTURE)
    options.add_pretrained_option(group)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    options.add_stage_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
