# SPDX-License-Identifier: Apache-2.0
"""Make a container in this process, or enter one.

Every step loads these modules:
    container               the container's record and its plan; applies the plan
    action caller           the plan's actions and their shared state; the user and directory that it starts from
    image namespaces root binds places accounts
                            the image, the namespaces, and the new root with its mounts and files
    environment environment_files user_directories task_plan
                            what ch-join does in each task
These are loaded only when they are needed:
    squashfs sif standby_server overlay_directory not_an_image
                            image files, kept changes to an image, and the error for a path that is not an image
    image_environment image_requests enroot_files entrypoint locales
                            what an image defines: its environment, its entrypoint, enroot's files
    device_edits relay pmix implied_binds late_binds loopback
                            devices, Slurm's commands, MPI, and a network namespace
    named_containers compatibility
                            named containers, and the rest of what pyxis users expect
    ch_join                 what runs the command where there is no plugin
"""
