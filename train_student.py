"""Knowledge distillation: a small network learns from the predictions of a large one, and from the labels.

    python train_student.py --teacher resnet50 --student resnet18

reads    weights/teacher_resnet50_<top-1>.pt, and the images of --dataset
writes   weights/kd_resnet18_<top-1>.pt, and its log and curves beside it
"""

from common.cli import launch, options, teacher_options
from common.cli.parser import Parser


def main(args):
    # imported here, so that --help does not load torch
    from common.compression.distillation import MeanOfLogits, distillation_loss_fn
    from common.models import architectures
    from common.stage import Stage

    # teacher, student, data; the first of several teachers is the parent
    stage = Stage("kd", args, parent=args.teacher[0], arch=args.student)
    teacher = MeanOfLogits([stage.model, *stage.open_teachers(args.teacher[1:])]).to(stage.device)
    student = architectures.build(args.student, stage.num_classes, args.pretrained)
    if finished := stage.begin(student, arch=args.student):
        return finished

    # baseline
    stage.validate(teacher, "teacher")

    # distillation: alpha * T^2 * distance(teacher, student) + (1 - alpha) * cross-entropy; the distance is
    # 1 - correlation (dist, of the probabilities of each image and of each class) or KL divergence (kd)
    settings = teacher_options.distillation_options(args)
    loss_fn = distillation_loss_fn(teacher, **settings, precision=stage.precision_for(teacher))
    student, history = stage.fit(student, loss_fn)

    # test, save
    score = stage.test(student)
    return stage.save(
        student, score, history, next_command="train_pruning.py --weights {path.name} --pruning-ratio 0.5"
    )


def parse_args(argv=None):
    parser = Parser(__doc__, __file__)
    teacher_options.add_teacher_options(parser, required=True, distillation="dist, with two classes kd")
    group = parser.add_argument_group("student")
    group.add_argument("--student", required=True, metavar="ARCH", help=options.ARCHITECTURE)
    options.add_pretrained_option(group)
    options.add_data_options(parser)
    options.add_training_options(parser, epochs=20, lr=5e-4)
    options.add_stage_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    launch.run(main, parse_args)
